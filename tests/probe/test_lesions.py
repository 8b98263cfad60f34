"""Lesions against networks built without the part, against edits, and the pattern of a trained ResNet."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from real_data import akamaster, images_of, martyn
from skip_nets import NETS, Written, built
from torch import Tensor, nn

import skipway as sw
from skipway.errors import SkipwayError
from skipway.probe.batches import Batch
from skipway.probe.follow import run
from skipway.probe.lesions import lesions
from skipway.probe.lesions_plan import blocks, exchanged, kendall_tau, units, without_branches, without_units
from skipway.probe.quiet import quiet
from skipway.probe.replay import Base, Change, replay
from skipway.probe.result import load

mpl.use("Agg")


def damaged(net: nn.Module, x: Tensor, changes: list[Change]) -> list[Tensor]:
    """The outputs of a network with each of these changes."""
    graph = sw.trace(net, x)
    with quiet(net) as inventory:
        base = Base(
            inventory, graph.trace, {change.begins(graph.trace) for change in changes}, Batch((x,), {}, None, 1)
        )
        run(net, base.batch, base, gradient=False)
        return [replay(net, base, change) for change in changes]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
class TestReplay:
    @pytest.mark.parametrize("name", NETS)
    def test_without_a_change_it_is_the_model(self, name: str):
        net, (x, _) = built(name)
        net.eval()
        with torch.no_grad():
            alone = net(x)
        graph = sw.trace(net, x)
        with quiet(net) as inventory:
            base = Base(inventory, graph.trace, range(len(graph.trace.operations)), Batch((x,), {}, None, 4))
            whole = run(net, base.batch, base, gradient=False)
            torch.testing.assert_close(whole, alone, rtol=1e-12, atol=1e-14)
            for place in range(0, len(graph.trace.operations), 2):
                assert torch.equal(replay(net, base, _from(place)), whole), place

    @pytest.mark.parametrize("name", [name for name in NETS if name != "dense"])
    def test_a_lesion_is_that_of_the_edit(self, name: str):
        from skipway import edit

        net, (x, _) = built(name)
        net.eval()
        graph = sw.trace(net, x)
        for skip, output in zip(
            graph.skips, damaged(net, x, [without_branches(graph, [s]) for s in graph.skips]), strict=True
        ):
            with torch.no_grad():
                expected = edit.lesion(net, skip)(x)
            torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-14)

    def test_a_lesion_is_the_network_without_the_branch(self):
        net, (x, _) = built("projected")
        net.eval()
        graph = sw.trace(net, x)
        outputs = damaged(net, x, [without_branches(graph, [skip]) for skip in graph.skips])
        for index, output in enumerate(outputs):
            without: Any = copy.deepcopy(net)
            block = without[index + 1]
            without[index + 1] = nn.Sequential(block.shortcut or nn.Identity(), nn.ReLU())
            torch.testing.assert_close(output, without(x), rtol=1e-12, atol=1e-14)

    def test_of_a_concatenation_the_channels_of_the_branch_are_zeros(self):
        net, (x, _) = built("dense")
        graph = sw.trace(net, x)
        skip = next(
            skip
            for skip in graph.skips
            if len(graph.trace.operations[skip.merge].operands) == 4 and len(skip.branches) == 1
        )
        (output,) = damaged(net, x, [without_branches(graph, [skip])])

        def forward(self: Any, x: Tensor) -> Tensor:
            maps = [self.net.stem(x)]
            for layer in self.net.layers:
                maps.append(torch.tanh(layer(torch.cat(maps, -1))))
            return self.net.head(torch.cat([*maps[:-1], 0 * maps[-1]], -1))

        torch.testing.assert_close(output, Written(forward, net=net)(x), rtol=1e-12, atol=1e-14)

    def test_several_at_once(self):
        net, (x, _) = built("chain")
        graph = sw.trace(net, x)
        (output,) = damaged(net, x, [without_branches(graph, [graph.skips[0], graph.skips[2]])])

        def forward(self: Any, x: Tensor) -> Tensor:
            x = F.softplus(self.net.stem(x))
            x = F.softplus(x + self.net.blocks[1](x))
            x = F.softplus(x)
            return self.net.head(F.softplus(x + self.net.blocks[3](x)))

        torch.testing.assert_close(output, Written(forward, net=net)(x), rtol=1e-12, atol=1e-14)

    def test_a_deleted_layer_of_a_plain_net_passes_on_what_it_gets(self):
        net = nn.Sequential(
            nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Linear(6, 6),
            nn.Tanh(), nn.Linear(6, 3),
        ).double().eval()  # fmt: skip
        x = torch.randn(5, 4, dtype=torch.float64)
        graph = sw.trace(net, x)
        found = units(graph)
        assert [unit.name for unit in found] == ["2:linear:0", "5:linear:0"]
        first, second = damaged(net, x, [without_units([unit]) for unit in found])
        torch.testing.assert_close(first, net[5:](net[:2](x)))
        torch.testing.assert_close(second, net[7:](net[:5](x)))

    def test_exchanged_blocks_are_exchanged(self):
        net, (x, _) = built("projected")
        net.eval()
        graph = sw.trace(net, x)
        found = blocks(graph)
        assert len({block.kind for block in found}) == 3

        chained, (x, _) = built("chain")
        graph = sw.trace(chained, x)
        found = blocks(graph)
        assert len({block.kind for block in found}) == 1
        tensors: Any = dict(chained.named_parameters())
        (output,) = damaged(chained, x, [exchanged([2, 1, 0, 3], found, tensors)])
        other: Any = copy.deepcopy(chained)
        other.blocks[0], other.blocks[2] = other.blocks[2], other.blocks[0]
        torch.testing.assert_close(output, other(x), rtol=1e-12, atol=1e-14)

    def test_what_comes_before_is_not_computed_again(self):
        def forward(self: Any, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = x + block(x)
            return x

        net = Written(
            forward,
            blocks=nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)) for _ in range(6)]),
        )
        x = torch.randn(2, 4)
        graph = sw.trace(net, x)
        computed: list[int] = []
        changes = [without_branches(graph, [skip]) for skip in graph.skips]
        with quiet(net) as inventory:
            base = Base(
                inventory, graph.trace, {change.begins(graph.trace) for change in changes}, Batch((x,), {}, None, 2)
            )
            run(net, base.batch, base, gradient=False)
            for change in changes:
                with torch.profiler.profile() as profile:
                    replay(net, base, change)
                computed.append(sum(event.count for event in profile.key_averages() if event.key == "aten::addmm"))
        # Of six blocks of two layers the k-th deletion computes only those behind it.
        assert computed == [10, 8, 6, 4, 2, 0]

    def test_a_model_that_writes_into_its_parameters_is_left_alone(self):
        def forward(self: Any, x: Tensor) -> Tensor:
            if not getattr(self, "scaled", False):
                with torch.no_grad():
                    self.f.weight.mul_(0.5)
                self.scaled = True
            x = self.stem(x)
            return x + self.g(x + self.f(x))

        net: Any = Written(forward, stem=nn.Linear(3, 3), f=nn.Linear(3, 3), g=nn.Linear(3, 3))
        before = net.f.weight.detach().clone()
        found = lesions(net, (torch.randn(4, 3), torch.tensor([0, 1, 2, 0])), "cross_entropy")
        assert len(found.losses) == 2
        assert torch.equal(net.f.weight, before)
        assert not hasattr(net, "scaled")


def _from(place: int) -> Change:
    class From(Change):
        def begins(self, trace: Any) -> int:
            return place

    return From()


class TestProbe:
    def test_losses_and_errors_are_the_means_over_all_samples(self):
        net, (x, y) = built("projected")
        whole = lesions(net, (x, y), "cross_entropy")
        parts = lesions(net, [(x[:1], y[:1]), (x[1:], y[1:])], "cross_entropy")
        np.testing.assert_allclose(parts.losses, whole.losses, rtol=1e-10)
        np.testing.assert_allclose(parts.errors, whole.errors)
        with torch.no_grad():
            output = net.eval()(x)
        assert whole.base_loss == pytest.approx(F.cross_entropy(output, y).item())
        assert whole.base_error == (output.argmax(1) != y).double().mean().item()
        assert whole.resized.tolist() == [False, True, False]

    def test_several_and_orders_are_drawn_by_seed(self):
        net, batch = built("chain")
        one, same, other = (
            lesions(net, batch, "cross_entropy", delete=(2, 3), reorder=(1, 3), seed=s) for s in (0, 0, 1)
        )
        assert one == same
        assert one != other
        assert one.deleted.tolist() == [2] * 5 + [3] * 5
        assert len(one.taus) == 10
        assert (one.taus < 1).any()
        np.testing.assert_allclose(one.reordered_losses[one.taus == 1], one.base_loss)

    def test_what_is_interrupted_goes_on_to_the_same_bits(self, tmp_path: Path):
        net, (x, y) = built("chain")
        data = [(x[:3], y[:3]), (x[3:], y[3:])]
        measured: list[float] = []

        def cross_entropy(output: Tensor, targets: Tensor) -> Tensor:
            if len(measured) == 7:
                raise KeyboardInterrupt
            value = F.cross_entropy(output, targets)
            measured.append(value.item())
            return value

        options: dict[str, Any] = {"delete": (2,), "repeats": 2, "reorder": (1,), "folder": tmp_path / "points"}
        unbroken = lesions(net, data, F.cross_entropy, **{**options, "folder": None})
        with pytest.raises(KeyboardInterrupt, match="7 of 18 points are kept in"):
            lesions(net, data, cross_entropy, **options)
        measured[:] = [0.0] * 8
        assert lesions(net, data, cross_entropy, **options) == unbroken
        assert len(measured) == 8 + 18 - 7
        assert lesions(net, data, cross_entropy, **options) == unbroken
        assert len(measured) == 8 + 18 - 7
        with pytest.raises(SkipwayError, match="holds the points of another measurement: its deleted is"):
            lesions(net, data, cross_entropy, **{**options, "delete": (3,)})

    def test_all_deleted_leaves_the_shortcuts(self):
        net, (x, y) = built("chain")
        found = lesions(net, (x, y), "cross_entropy", delete=(4,), repeats=1)
        stream: Any = net.stem(x)  # pyright: ignore[reportCallIssue]
        for _ in range(4):
            stream = F.softplus(stream)
        assert found.deleted_losses[0] == pytest.approx(F.cross_entropy(net.head(stream), y).item())  # pyright: ignore[reportCallIssue]

    def test_table_plot_and_file(self, tmp_path: Any):
        net, batch = built("projected")
        found = lesions(net, batch, "cross_entropy", delete=(1, 2))
        assert list(found.table()["part"]) == list(found.parts)
        assert len(found.table("several")) == 10
        assert load(found.save(tmp_path / "lesions")) == found
        assert len(found.plot()) == 2
        assert all(panel.get_ylim()[1] > panel.dataLim.y1 for panel in found.plot())
        assert len(list(found.interactive().data)) == 1

    def test_without_classes_the_loss_is_shown(self):
        net, (x, _) = built("chain")
        found = lesions(net, (x, torch.zeros(4, 3)), "mse")
        assert np.isnan(found.base_error)
        assert found.plot()[0].get_ylabel() == "loss" if hasattr(found.plot(), "__len__") else True

    def test_no_trace_is_left(self):
        net, batch = built("projected")
        net.train()
        before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
        lesions(net, batch, "cross_entropy", delete=(2,))
        assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
        assert net.training
        assert torch.equal(torch.get_rng_state(), state)

    def test_slips_are_told(self, no_shape_checks: None):
        net, batch = built("chain")
        with pytest.raises(SkipwayError, match="delete=5: this network has 4 skips"):
            lesions(net, batch, "cross_entropy", delete=(5,))
        with pytest.raises(SkipwayError, match="no part 'blocks'"):
            lesions(net, batch, "cross_entropy", of="blocks")  # pyright: ignore[reportArgumentType]
        one = nn.Sequential(nn.Linear(5, 3))
        with pytest.raises(SkipwayError, match="has no layer that keeps the shape"):
            lesions(one, batch, "cross_entropy")
        projected, batch = built("projected")
        with pytest.raises(SkipwayError, match="no two blocks that are alike"):
            lesions(projected, batch, "cross_entropy", reorder=(1,))


def test_kendalls_tau():
    scipy: Any = pytest.importorskip("scipy.stats")
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [1, 0, 3, 2], [4, 2, 0, 1, 3]):
        assert kendall_tau(order) == pytest.approx(scipy.kendalltau(range(len(order)), order).statistic)


class TestBranchesThatGiveMoreThanTheirSum:
    """What else a branch makes is still there when it is deleted: only what it adds to the stream is gone."""

    def _by_hand(self, net: nn.Module, modules: list[nn.Module], measure: Any) -> list[float]:
        """The same with hooks: the first thing that a module gives is zeros, the rest as it was."""

        def nothing(module: nn.Module, args: Any, output: Any) -> Any:
            return (0 * output[0], *output[1:]) if isinstance(output, tuple) else 0 * output

        found = []
        for module in modules:
            hook = module.register_forward_hook(nothing)
            with torch.no_grad():
                found.append(measure())
            hook.remove()
        return found

    def test_the_first_attention_of_t5_makes_the_position_bias_of_all(self):
        transformers: Any = pytest.importorskip("transformers")
        net = transformers.T5EncoderModel(
            transformers.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_heads=2)
        ).eval()
        for parameter in net.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        ids = torch.randint(50, (4, 7))

        def loss(output: Any, _: Any) -> Tensor:
            return output.last_hidden_state[..., :5].pow(3).mean()

        found = lesions(net, {"input_ids": ids, "labels": torch.zeros(4)}, loss)
        branches = [part for block in net.encoder.block for part in (block.layer[0].SelfAttention,
                    block.layer[1].DenseReluDense)]  # fmt: skip
        expected = self._by_hand(net, branches, lambda: loss(net(input_ids=ids), None).item())
        np.testing.assert_allclose(found.losses, expected, rtol=1e-6)
        assert len(set(expected)) == 6

    def test_rwkv_rescales_its_weights_in_place_and_hands_a_state_on(self):
        transformers: Any = pytest.importorskip("transformers")
        net = transformers.RwkvForCausalLM(
            transformers.RwkvConfig(
                vocab_size=50, hidden_size=16, attention_hidden_size=16, intermediate_size=32, num_hidden_layers=5,
                context_length=16, rescale_every=2,
            )
        ).eval()  # fmt: skip
        for parameter in net.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        ids = torch.randint(50, (4, 7))
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}

        def loss(output: Any, targets: Tensor) -> Tensor:
            return F.cross_entropy(output.logits.flatten(0, 1), targets.flatten())

        found = lesions(net, {"input_ids": ids, "labels": ids}, loss)
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
        branches = [part for block in net.rwkv.blocks for part in (block.attention, block.feed_forward)]
        expected = self._by_hand(net, branches, lambda: loss(net(input_ids=ids), ids).item())
        np.testing.assert_allclose(found.losses, expected, rtol=1e-6)


@pytest.mark.slow
class TestTrained:
    def test_a_resnet_survives_single_deletions_and_needs_the_blocks_that_change_the_shape(self, shared_data: Path):
        net, batch = akamaster(shared_data, 56), images_of(shared_data, "akamaster", 200)
        found = lesions(net, batch, "cross_entropy", delete=(1, 3, 8, 15), reorder=(1, 4, 12), repeats=3)
        added = found.errors - found.base_error
        assert found.base_error < 0.09
        assert (added < 0.04).sum() >= 20
        assert found.errors.argmax() == np.flatnonzero(found.resized)[0]
        assert np.median(added[found.resized]) > 3 * np.median(added[~found.resized])
        means = [found.deleted_errors[found.deleted == count].mean() for count in (1, 3, 8, 15)]
        assert means == sorted(means)
        assert np.corrcoef(found.taus, found.reordered_errors)[0, 1] < -0.6

    def test_a_plain_net_survives_none(self, shared_data: Path):
        batch = images_of(shared_data, "a-martyn", 100)
        plain = lesions(martyn(shared_data, "plainnet", 20), batch, "cross_entropy")
        residual = lesions(martyn(shared_data, "resnet", 20), batch, "cross_entropy")
        assert plain.of == "layers"
        assert np.median(plain.errors) > 0.6
        assert np.median(plain.errors) > 2 * np.median(residual.errors)
