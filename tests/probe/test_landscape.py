"""Landscapes against evaluations that know nothing of them, for every policy; and the defects that others have."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from probe_nets import images, mlp, points, tiny_resnet, trained_mlp
from torch import Tensor, nn

from skipway.errors import SkipwayError
from skipway.probe import landscape, random_direction, read_batches
from skipway.probe.landscape_points import LandscapeTask, with_way
from skipway.probe.plane import make_plane


def by_hand(
    model: nn.Module, changes: list[dict[str, Tensor]], where: tuple[float, ...], x: Tensor, y: Tensor
) -> float:
    """The loss at a point, in double precision, by writing every parameter of a copy."""
    moved = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            for share, change in zip(where, changes, strict=True):
                if name in change:
                    parameter += share * change[name].double()
        return float(F.cross_entropy(moved(x.double()), y))


def twenty(shape: tuple[int, ...], seed: int = 3) -> list[tuple[int, ...]]:
    flat = np.random.default_rng(seed).choice(int(np.prod(shape)), 20, replace=False)
    return [tuple(int(i) for i in np.unravel_index(place, shape)) for place in flat]


class TestAgainstBruteForce:
    @pytest.mark.parametrize("net", ["resnet", "mlp"])
    def test_frozen(self, net: str):
        model, (x, y) = (tiny_resnet(), images()) if net == "resnet" else trained_mlp()
        found = landscape(model, [(x[:17], y[:17]), (x[17:], y[17:])], "cross_entropy", steps=(7, 5), seed=4)
        assert found.way == ("folded" if net == "resnet" else "plain")
        directions = [random_direction(model, 4, number)[0] for number in range(2)]
        for i, j in twenty((7, 5)):
            expected = by_hand(model, directions, (found.x[i], found.y[j]), x, y)  # pyright: ignore[reportOptionalSubscript]
            assert found.loss[i, j] == pytest.approx(expected, rel=1e-6)

    def test_every_way_is_the_same_surface(self):
        model, (x, y) = tiny_resnet(), images()
        batches = read_batches(model, (x, y), "cross_entropy")
        plane = make_plane(model, 2, None, None, "filter", 0, "frozen")
        where = np.array([[0.4, -0.7], [1.0, 1.0]])
        task = with_way(LandscapeTask(model, plane, where, (batches,), "frozen"))
        assert task.way == "folded"
        kinds = [("plain", 0), ("channels last", 0), ("channels last", 5), ("folded", 0), ("folded", 7)]
        found = [LandscapeTask(model, plane, where, (batches,), "frozen", way=w, pieces=p).measure() for w, p in kinds]
        for point in range(2):
            values = [measure(point)[0] for measure in found]
            assert values == pytest.approx([values[0]] * 5, rel=1e-5)
            assert values[0] == pytest.approx(by_hand(model, list(plane.vectors), tuple(where[point]), x, y), rel=1e-6)

    def test_recalibrated(self):
        model, (x, y) = tiny_resnet(), images()
        parts = [(x[:17], y[:17]), (x[17:], y[17:])]
        found = landscape(model, parts, "cross_entropy", steps=(5, 4), batch_norm="recalibrated")
        directions = [random_direction(model, 0, number)[0] for number in range(2)]
        assert found.y is not None
        for i, j in twenty((5, 4)):
            moved = copy.deepcopy(model).double()
            with torch.no_grad():
                for name, parameter in moved.named_parameters():
                    for share, change in zip((found.x[i], found.y[j]), directions, strict=True):
                        parameter += share * change.get(name, torch.zeros(())).double()
                # The statistics of each batch, weighted by its samples.
                norms = [module for module in moved.modules() if isinstance(module, nn.BatchNorm2d)]
                sums = [torch.zeros(2, norm.num_features).double() for norm in norms]
                for part, _ in parts:
                    moved.train()
                    for norm in norms:
                        norm.momentum = 1.0
                    moved(part.double())
                    for norm, total in zip(norms, sums, strict=True):
                        total += len(part) * torch.stack([norm.running_mean, norm.running_var])  # pyright: ignore
                moved.eval()
                for norm, total in zip(norms, sums, strict=True):
                    norm.running_mean, norm.running_var = total / len(x)
                expected = float(F.cross_entropy(moved(x.double()), y))
            assert found.loss[i, j] == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("batch_norm", ["frozen", "interpolated"])
    def test_between_two_models(self, batch_norm: str):
        model, other, (x, y) = tiny_resnet(0), tiny_resnet(1), images()
        found = landscape(model, (x, y), "cross_entropy", other=other, steps=21, batch_norm=batch_norm)
        assert (found.x[0], found.x[-1], found.loss.shape) == (-0.5, 1.5, (21,))
        for i in range(21):
            t = float(found.x[i])
            mixed = copy.deepcopy(model).double()
            state = {name: tensor.double() for name, tensor in other.state_dict().items()}
            with torch.no_grad():
                for name, tensor in (*mixed.named_parameters(), *mixed.named_buffers()):
                    is_buffer = name not in dict(mixed.named_parameters())
                    if tensor.is_floating_point() and not (is_buffer and batch_norm == "frozen"):
                        tensor.mul_(1 - t).add_(state[name], alpha=t)
                        if name.endswith("running_var"):
                            tensor.clamp_(min=0)
                expected = float(F.cross_entropy(mixed(x.double()), y))
            assert found.loss[i] == pytest.approx(expected, rel=1e-5)

    def test_the_plane_through_three(self):
        model, second, third = (mlp(5, 8, 3, seed=seed) for seed in range(3))
        batch = points()
        found = landscape(model, batch, "cross_entropy", other=[second, third.state_dict()], steps=9)
        corners = {(2, 2): model, (6, 2): second, (2, 6): third}
        for (i, j), net in corners.items():
            assert found.loss[i, j] == pytest.approx(read_batches(net, batch, "cross_entropy").mean_loss(net), rel=1e-6)
        vectors = [
            {name: parameter - dict(model.named_parameters())[name] for name, parameter in net.named_parameters()}
            for net in (second, third)
        ]
        assert found.y is not None
        for i, j in twenty((9, 9)):
            expected = by_hand(model, vectors, (found.x[i], found.y[j]), *batch)
            assert found.loss[i, j] == pytest.approx(expected, rel=1e-5)

    def test_errors_and_test_data(self):
        model, (x, y) = trained_mlp()
        found = landscape(model, (x[:200], y[:200]), "cross_entropy", steps=5, dims=1, test=(x[200:], y[200:]))
        direction = random_direction(model, 0)[0]
        for i in range(5):
            moved = copy.deepcopy(model)
            with torch.no_grad():
                for name, parameter in moved.named_parameters():
                    parameter += found.x[i] * direction.get(name, torch.zeros(()))
                wrong = (moved(x).argmax(1) != y).float()
            assert found.error[i] == pytest.approx(float(wrong[:200].mean()))
            assert found.test_error is not None
            assert found.test_error[i] == pytest.approx(float(wrong[200:].mean()))


class TestTheCentre:
    @pytest.mark.parametrize("batch_norm", ["frozen"])
    @pytest.mark.parametrize("steps", [(5, 5), (51, 3), (7, 11)])
    def test_is_the_loss_bit_for_bit(self, batch_norm: str, steps: tuple[int, int]):
        model, batch = tiny_resnet(), images()
        found = landscape(model, batch, "cross_entropy", steps=steps, batch_norm=batch_norm)
        i, j = steps[0] // 2, steps[1] // 2
        assert found.x[i] == 0
        with torch.no_grad():
            assert found.loss[i, j] == float(F.cross_entropy(model(batch[0]), batch[1]))

    def test_and_both_ends_between_models(self):
        model, other, batch = mlp(5, 8, 3, seed=0), mlp(5, 8, 3, seed=1), points()
        found = landscape(model, batch, "cross_entropy", other=other, steps=41)
        for net, at in ((model, 10), (other, 30)):
            assert found.x[at] == (0.0 if net is model else 1.0)
            assert found.loss[at] == read_batches(net, batch, "cross_entropy").mean_loss(net)


class TestDefectsOfOthers:
    def test_grids_need_not_be_square(self):
        """tomgoldstein/loss-landscape fills a (nx, ny) array by the index of a (ny, nx) grid."""
        model, batch = mlp(5, 8, 3), points()
        wide, square = (landscape(model, batch, "cross_entropy", steps=steps, span=0.5) for steps in ((9, 3), (9, 9)))
        assert wide.loss.shape == (9, 3)
        np.testing.assert_allclose(wide.loss, square.loss[:, ::4])
        swapped = landscape(
            model, batch, "cross_entropy", steps=(3, 9), span=0.5,
            directions=[random_direction(model, 0, number)[0] for number in (1, 0)],
        )  # fmt: skip
        np.testing.assert_allclose(swapped.loss, wide.loss.T, rtol=1e-6)

    def test_a_span_may_begin_at_zero(self):
        """tomgoldstein/loss-landscape refuses a range that starts or ends at 0."""
        found = landscape(mlp(5, 3), points(), "cross_entropy", dims=1, steps=3, span=(0, 2))
        assert found.x.tolist() == [0, 1, 2]

    def test_rows_are_not_shifted_against_each_other(self):
        """loss-landscapes walks to and fro, and its neighbouring rows lie a step apart: a saw in every column."""
        model, batch = trained_mlp()
        loss = landscape(model, batch, "cross_entropy", steps=(9, 9), span=0.2).loss
        column = loss[:, 1]
        saw = np.abs(column[1:-1] - (column[2:] + column[:-2]) / 2).max()
        assert saw < 0.2 * np.ptp(column)
        # The same, exactly: each point alone has the value that it has in the grid.
        alone = landscape(model, batch, "cross_entropy", steps=(9, 1), span=((-0.2, 0.2), (0.15, 0.3))).loss
        again = landscape(model, batch, "cross_entropy", steps=(1, 1), span=((0.2, 0.3), (0.15, 0.3))).loss
        assert again[0, 0] == alone[-1, 0]

    def test_alpha_is_in_units_of_the_weights(self):
        """loss-landscapes rescales the direction by distance / steps: its values depend on the number of steps."""
        model, batch = mlp(5, 8, 3), points()
        few, many = (landscape(model, batch, "cross_entropy", dims=1, steps=steps).loss for steps in (3, 21))
        np.testing.assert_array_equal(few, many[::10])

    def test_the_model_is_left_alone_in_any_mode(self):
        """loss-landscapes leaves it moved, without gradients, and with other statistics if it was training."""
        model, batch = tiny_resnet().train(), images()
        before = copy.deepcopy(model.state_dict())
        pointers = [parameter.data_ptr() for parameter in model.parameters()]
        state = torch.get_rng_state()
        for batch_norm in ("frozen", "recalibrated"):
            landscape(model, batch, "cross_entropy", steps=3, batch_norm=batch_norm)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert pointers == [parameter.data_ptr() for parameter in model.parameters()]
        assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
        assert all(module.training for module in model.modules())
        assert torch.equal(state, torch.get_rng_state())

    def test_training_mode_does_not_leak_into_the_surface(self):
        model, batch = tiny_resnet(), images()
        evaluated = landscape(model, batch, "cross_entropy", steps=3)
        assert landscape(model.train(), batch, "cross_entropy", steps=3) == evaluated

    def test_memory_does_not_grow_with_the_grid(self):
        """loss-landscape-anim holds every point's weights at once."""
        from benchmarks.measure import peak_bytes

        model = mlp(256, 1024, 10)
        batch = points(8, 256, 10)
        few, many = (
            peak_bytes(lambda steps=steps: landscape(model, batch, "cross_entropy", steps=steps)) for steps in (3, 15)
        )
        assert many < 1.05 * few
        size = sum(parameter.nbytes for parameter in model.parameters())
        # A copy of the model, two directions, and a batch's forward: two layers of 8 x 1024 numbers, input and output.
        assert many < 3 * size + 8 * (2 * 1024 + 300) * 4

    def test_whole_numbers_in_buffers_are_not_interpolated(self):
        model, other = tiny_resnet(0), tiny_resnet(1)
        with torch.no_grad():
            for module in other.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.state_dict()["num_batches_tracked"].add_(7)
        found = landscape(model, images(), "cross_entropy", other=other, steps=5, batch_norm="interpolated")
        assert np.isfinite(found.loss).all()

    def test_statistics_beyond_a_model_stay_variances(self):
        model, other = tiny_resnet(0), tiny_resnet(1)
        with torch.no_grad():
            other.state_dict()["stem.1.running_var"].mul_(10)
        found = landscape(
            model, images(), "cross_entropy", other=other, steps=5, span=(-3, 3), batch_norm="interpolated"
        )
        assert np.isfinite(found.loss).all()


class TestKindsOfModels:
    def test_a_lstm_whose_weights_are_held_twice(self):
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.lstm = nn.LSTM(5, 6, batch_first=True)
                self.head = nn.Linear(6, 3)

            def forward(self, x: Tensor) -> Tensor:
                return self.head(self.lstm(x[:, None])[0][:, -1])

        model, (x, y) = Net(), points()
        found = landscape(model, (x, y), "cross_entropy", steps=3)
        directions = [random_direction(model, 0, number)[0] for number in range(2)]
        assert found.loss[0, 2] == pytest.approx(by_hand(model, directions, (-1.0, 1.0), x, y), rel=1e-6)

    def test_a_model_of_hugging_face(self):
        transformers = pytest.importorskip("transformers")
        config = transformers.GPT2Config(
            vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2, resid_pdrop=0.1, bos_token_id=0, eos_token_id=0
        )
        model = transformers.GPT2LMHeadModel(config)
        tokens = torch.randint(20, (3, 8))
        found = landscape(model, {"input_ids": tokens, "labels": tokens}, steps=3)
        with torch.no_grad():
            assert found.loss[1, 1] == float(model.eval()(input_ids=tokens, labels=tokens).loss)
        assert "lm_head.weight" not in found.ignored

    def test_several_inputs_and_regression(self):
        class Sum(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(5, 1)

            def forward(self, a: Tensor, b: Tensor) -> Tensor:
                return self.layer(a + b)

        x, _ = points()
        found = landscape(Sum(), ((x, x), x.sum(1)), "mse", steps=3)
        assert np.isnan(found.error).all()
        found.plot()
        found.interactive()

    def test_low_precision_reports_its_error(self):
        model, batch = tiny_resnet(), images()
        exact = landscape(model, batch, "cross_entropy", steps=7)
        low = landscape(model, batch, "cross_entropy", steps=7, dtype=torch.bfloat16)
        assert low.policy.dtype == "bfloat16"
        assert low.precision_error is not None
        relative = np.abs(low.loss / exact.loss - 1).ravel()[::20]
        assert low.precision_error == pytest.approx((np.median(relative), relative.max()), rel=2e-2)
        assert 0 < low.precision_error[1] < 0.05
        assert "bfloat16 is off by" in low.caption
        assert exact.precision_error is None


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"batch_norm": "frosen"}, "no BatchNorm policy 'frosen'; did you mean 'frozen'"),
            ({"batch_norm": "interpolated"}, "is between models: give other="),
            ({"calibration": points()}, "calibration data is for batch_norm='recalibrated'"),
            ({"dims": 3}, "dims=3: a landscape has 1 dimension or 2"),
            ({"steps": 0}, "steps=0: a number of points, at least 1"),
            ({"steps": (3, 3, 3)}, "or one for each of 2 axes"),
            ({"span": (1, 0)}, r"span=\(1, 0\): give r for -r to r"),
            ({"normalize": "filters"}, "no normalisation 'filters'"),
            ({"workers": 0}, "workers=0: at least 1"),
            ({"shard": (0, 2)}, "a shard needs a folder"),
            ({"shard": (2, 2), "folder": "x"}, "counts from 0 to 1"),
            ({"other": mlp(5, 4, 3)}, "both must be of one architecture"),
            ({"other": mlp(5, 3), "dims": 2}, "1 directions were given; a landscape of this kind needs 2"),
            ({"other": mlp(5, 3), "directions": []}, "give other models or directions, not both"),
            ({"directions": {"0.weight": torch.zeros(3, 5)}}, "a list of one or two dictionaries"),
            ({"directions": [{"1.weight": torch.zeros(3, 5)}]}, "no parameter '1.weight'"),
            ({"directions": [{}]}, "the directions move no parameter"),
            ({"dtype": torch.int8}, "bfloat16 or float16"),
        ],
    )
    def test_one_sentence(self, options: dict[str, Any], message: str):
        with pytest.raises(SkipwayError, match=message):
            landscape(mlp(5, 3), points(), "cross_entropy", **options)

    def test_a_model_without_filters(self):
        with pytest.raises(SkipwayError, match="no weight matrix or filter to move"):
            landscape(nn.LayerNorm(5), (points()[0], points()[0]), "mse")
