"""The Hessian against torch.func.hessian, closed forms, and the defects that others have."""

from __future__ import annotations

import copy
import gc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from probe_nets import images, mlp, points, tiny_resnet
from torch import Tensor, nn

from skipway.errors import SkipwayError
from skipway.probe import curvature, curvature_map, load, read_batches
from skipway.probe.hessian import Hessian, block_patterns, in_pieces, matching


def written_out(model: nn.Module, x: Tensor, y: Tensor, names: tuple[str, ...] | None = None) -> Tensor:
    """The whole Hessian of the cross-entropy, by torch.func."""
    own = dict(model.named_parameters())
    names = names or tuple(own)
    sizes = [own[name].numel() for name in names]

    def loss(w: Tensor) -> Tensor:
        parts = {name: part.view_as(own[name]) for name, part in zip(names, w.split(sizes), strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, parts, (x,)), y)

    with warnings.catch_warnings():
        # What torch.func itself imports at its first call is deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.func.hessian(loss)(torch.cat([own[name].detach().flatten() for name in names])).detach()


class TestProducts:
    @settings(max_examples=15)
    @given(st.integers(0, 100), st.lists(st.integers(1, 9), min_size=1, max_size=4))
    def test_against_torch_func(self, seed: int, sizes: list[int]):
        """Ragged batches too: hessian-eigenthings averages their means, Li's code adds them up."""
        net = mlp(5, 4, 3, seed=seed).double()
        x, y = (part.double() if part.is_floating_point() else part for part in points(sum(sizes)))
        hessian = Hessian(
            net, read_batches(net, list(zip(x.split(sizes), y.split(sizes), strict=True)), "cross_entropy")
        )
        v = torch.randn(hessian.size, dtype=torch.float64)
        torch.testing.assert_close(hessian.product(v), written_out(net, x, y) @ v, rtol=1e-10, atol=1e-12)

    def test_linear_and_symmetric(self):
        net = tiny_resnet().double()
        hessian = Hessian(net, read_batches(net, images(), "cross_entropy"))
        u, v = torch.randn(2, hessian.size, dtype=torch.float64)
        assert float(u @ hessian.product(v)) == pytest.approx(float(v @ hessian.product(u)), rel=1e-9)
        torch.testing.assert_close(hessian.product(2 * u - v), 2 * hessian.product(u) - hessian.product(v))

    def test_pieces_give_the_same(self):
        net = tiny_resnet().double()
        batches = read_batches(net, images(23), "cross_entropy")
        one, other = Hessian(net, batches), Hessian(net, in_pieces(batches, 5))
        v = torch.randn(one.size, dtype=torch.float64)
        torch.testing.assert_close(one.product(v), other.product(v), rtol=1e-9, atol=1e-12)

    def test_parameters_of_one_dimension_are_in(self):
        """tomgoldstein/loss-landscape leaves biases and norms out of the product it reads back."""
        net, (x, y) = mlp(5, 4, 3).double(), points()
        expected = written_out(net, x.double(), y)
        hessian = Hessian(net, read_batches(net, (x, y), "cross_entropy"))
        rows = torch.stack([hessian.product(v) for v in torch.eye(hessian.size, dtype=torch.float64)])
        torch.testing.assert_close(rows, expected, rtol=1e-9, atol=1e-12)

    def test_attention_works(self):
        """Fused attention has no second derivative."""
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).double()
        net = nn.Sequential(layer, nn.Flatten(), nn.Linear(24, 3).double())
        x, y = torch.randn(6, 3, 8).double(), torch.randint(3, (6,))
        hessian = Hessian(net.train(), read_batches(net, (x, y), "cross_entropy"))
        v = torch.randn(hessian.size, dtype=torch.float64)
        found = hessian.product(v)
        assert hessian.method == "double backward"
        step = 1e-6
        gradients = []
        for sign in (1, -1):
            moved = copy.deepcopy(net)
            with torch.no_grad():
                for parameter, part in zip(moved.parameters(), hessian._split(v), strict=True):
                    parameter += sign * step * part
            gradients.append(torch.autograd.grad(F.cross_entropy(moved(x), y), list(moved.parameters())))
        expected = torch.cat([(a - b).flatten() / (2 * step) for a, b in zip(*gradients, strict=True)])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)

    def test_without_a_second_derivative_it_takes_differences_and_says_so(self):
        class Once(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                ctx.save_for_backward(x)
                return x.tanh()

            @staticmethod
            @torch.autograd.function.once_differentiable
            def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
                return gradients[0] * (1 - ctx.saved_tensors[0].tanh() ** 2)

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = mlp(5, 4, 3)

            def forward(self, x: Tensor) -> Tensor:
                return self.net[2](Once.apply(self.net[0](x)))

        model, (x, y) = Net().double(), points()
        x = x.double()
        before = [parameter.clone() for parameter in model.parameters()]
        found = curvature(model, (x, y), "cross_entropy", top=3, bottom=1, measure="eigenvalues", tolerance=1e-6)
        assert "central differences of the gradient" in found.method
        assert "central differences" in found.caption
        expected = np.linalg.eigvalsh(written_out(model.net, x, y).numpy())
        np.testing.assert_allclose(found.top[0], expected[::-1][:3], rtol=1e-4)
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))

    def test_nothing_is_kept_alive(self):
        """PyHessian's backward(create_graph=True) ties parameters and gradients into a cycle, and torch warns."""
        net = mlp(5, 4, 3)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            Hessian(net, read_batches(net, points(), "cross_entropy")).product(torch.ones(35 + 4))
        gc.collect()
        assert all(parameter.grad is None for parameter in net.parameters())


class TestClosedForms:
    def test_linear_regression(self):
        """L = |X w - y|^2 / n: H = 2 X^T X / n."""
        x, y = torch.randn(50, 4).double(), torch.randn(50, 1).double()
        net = nn.Linear(4, 1, bias=False).double()
        found = curvature(net, (x, y), "mse", top=4, bottom=4, tolerance=1e-10)
        exact = np.linalg.eigvalsh((2 * x.T @ x / 50).numpy())
        np.testing.assert_allclose(found.top[0], exact[::-1], rtol=1e-8)
        np.testing.assert_allclose(found.bottom[0], exact, rtol=1e-8)
        assert found.trace[0] == pytest.approx(exact.sum())
        assert found.trace_error[0] == 0

    def test_logistic_regression(self):
        """H = X^T diag(p (1 - p)) X / n."""
        x, y = torch.randn(60, 3).double(), torch.randint(2, (60, 1)).double()
        net = nn.Linear(3, 1, bias=False).double()
        p = torch.sigmoid(net(x)).detach()
        exact = np.linalg.eigvalsh((x.T @ (p * (1 - p) * x) / 60).numpy())
        found = curvature(net, (x, y), "binary_cross_entropy", top=3, bottom=0, tolerance=1e-10, measure="eigenvalues")
        np.testing.assert_allclose(found.top[0], exact[::-1], rtol=1e-8)

    def test_a_loss_without_curvature(self):
        net = nn.Linear(3, 1)
        found = curvature(net, points(10, 3), lambda output, target: output.mean(), top=1)
        assert found.top[0, 0] == found.bottom[0, 0] == found.trace[0] == 0
        found.plot()


class TestCurvature:
    def test_everything_against_the_written_out_hessian(self, tmp_path: Path):
        net, (x, y) = mlp(5, 8, 6, 3).double(), points()
        exact = written_out(net, x.double(), y).numpy()
        values = np.linalg.eigvalsh(exact)
        found = curvature(net, (x, y), "cross_entropy", top=4, bottom=3, tolerance=1e-8, runs=8)
        np.testing.assert_allclose(found.top[0], values[::-1][:4], rtol=1e-7)
        np.testing.assert_allclose(found.bottom[0], values[:3], rtol=1e-7)
        assert found.top_converged.all()
        assert abs(found.trace[0] - values.sum()) < 4 * found.trace_error[0] + 1e-9
        np.testing.assert_allclose(found.weights.sum(-1), 1, atol=1e-10)
        at, density = found.density()
        assert np.trapezoid(density, at) == pytest.approx(1, abs=1e-3)
        mean = np.trapezoid(density * at, at)
        assert mean == pytest.approx(values.mean(), abs=4 * values.std() / (8 * len(values)) ** 0.5)
        assert load(found.save(tmp_path / "found")) == found
        found.plot()
        found.interactive()
        assert found.table().shape[0] == 1

    def test_groups_are_diagonal_blocks(self):
        net, (x, y) = mlp(5, 8, 6, 3).double(), points()
        found = curvature(
            net,
            (x, y),
            "cross_entropy",
            groups=["0.*", "*.bias"],
            top=2,
            bottom=2,
            tolerance=1e-9,
            measure="eigenvalues",
        )
        assert found.groups == ("0.*", "*.bias")
        for number, pattern in enumerate(found.groups):
            names = matching(net, pattern)
            exact = np.linalg.eigvalsh(written_out(net, x.double(), y, names).numpy())
            np.testing.assert_allclose(found.top[number], exact[::-1][:2], rtol=1e-6)
            np.testing.assert_allclose(found.bottom[number], exact[:2], rtol=1e-6, atol=1e-10)
            assert found.parameters[number] == len(exact)
        found.plot()
        found.interactive()

    def test_blocks(self):
        assert block_patterns(tiny_resnet()) == ("blocks.0.*", "blocks.1.*")
        found = curvature(tiny_resnet(), images(), "cross_entropy", groups="blocks", measure="eigenvalues", top=1)
        assert found.top.shape == (2, 1)
        with pytest.raises(SkipwayError, match="the model holds no lists of blocks; name groups"):
            curvature(mlp(5, 3), points(), "cross_entropy", groups="blocks")

    def test_the_model_is_left_alone(self):
        """PyHessian leaves it in evaluation mode."""
        net = tiny_resnet().train()
        net.stem.requires_grad_(False)
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        state = torch.get_rng_state()
        for mode in ("eval", "train"):
            found = curvature(net, images(), "cross_entropy", mode=mode, top=1, trace_products=3, runs=1, steps=3)
            assert found.policy.mode == mode
            assert found.parameters[0] == sum(p.numel() for p in net.parameters() if p.requires_grad)
        assert all(module.training for module in net.modules())
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
        assert not net.stem[0].weight.requires_grad
        assert all(parameter.grad is None for parameter in net.parameters())
        assert torch.equal(state, torch.get_rng_state())

    def test_the_same_seed_is_the_same_number(self):
        net, batch = mlp(5, 8, 3), points()
        options: Any = {"top": 2, "trace_products": 9, "runs": 2, "steps": 5}
        assert curvature(net, batch, "cross_entropy", **options) == curvature(net, batch, "cross_entropy", **options)
        other = curvature(net, batch, "cross_entropy", seed=1, **options)
        assert other.trace[0] != curvature(net, batch, "cross_entropy", **options).trace[0]

    def test_what_is_interrupted_goes_on_to_the_same_bits(self, tmp_path: Path):
        net, batch = tiny_resnet(), images()
        asked: list[int] = []

        def cross_entropy(output: Tensor, targets: Tensor) -> Tensor:
            if len(asked) == 30:
                raise KeyboardInterrupt
            asked.append(1)
            return F.cross_entropy(output, targets)

        options: dict[str, Any] = {"groups": "blocks", "top": 2, "trace_products": 3, "runs": 2, "steps": 8}
        unbroken = curvature(net, batch, F.cross_entropy, **options)
        folder = tmp_path / "groups"
        with pytest.raises(KeyboardInterrupt):
            curvature(net, batch, cross_entropy, folder=folder, **options)
        lines = [line for path in folder.glob("points-*") for line in path.read_text().splitlines()]
        assert [line.split(",")[0] for line in lines] == ["[0"]
        asked[:] = [1] * 31
        assert curvature(net, batch, cross_entropy, folder=folder, **options) == unbroken
        spent = len(asked) - 31
        assert spent == unbroken.products[1]
        assert curvature(net, batch, cross_entropy, folder=folder, **options) == unbroken
        assert len(asked) - 31 == spent
        with pytest.raises(SkipwayError, match="holds the points of another measurement: its top is 2, this one's is"):
            curvature(net, batch, cross_entropy, folder=folder, **{**options, "top": 1})

    def test_in_double_precision(self):
        net, batch = mlp(5, 8, 3), points()
        found = curvature(net, batch, "cross_entropy", dtype=torch.float64, tolerance=1e-9, measure="eigenvalues")
        exact = np.linalg.eigvalsh(written_out(net.double(), batch[0].double(), batch[1]).numpy())
        np.testing.assert_allclose(found.top[0], exact[::-1][:5], rtol=1e-7)
        assert found.policy.dtype == "float64"

    def test_against_hessian_eigenthings(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks" / ".peers")
        package: Any = pytest.importorskip(
            "hessian_eigenthings", reason="hessian-eigenthings is not in benchmarks/.peers"
        )
        net, batch = mlp(5, 8, 3), points()
        operator = package.HessianOperator(net, [batch], package.supervised_loss(F.cross_entropy))
        found = curvature(net, batch, "cross_entropy", top=1, bottom=1, measure="eigenvalues")
        for which, ours in (("LA", found.top[0, 0]), ("SA", found.bottom[0, 0])):
            theirs = package.lanczos(operator, k=1, max_iter=60, which=which, seed=0, reorthogonalize=True)
            assert ours == pytest.approx(float(theirs.eigenvalues[0]), rel=1e-3)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"groups": "layer3.*"}, r"no parameter fits 'layer3\.\*'; they are named 0\.weight"),
            ({"measure": "eigenvalue"}, "no measurement 'eigenvalue'; did you mean 'eigenvalues'"),
            ({"top": 0, "bottom": 0}, "at least one in all"),
            ({"mode": "train", "batch_size": 3}, "in training mode the samples of a batch belong together"),
            ({"steps": 1}, "trace_products and steps are at least 3"),
        ],
    )
    def test_refusals(self, options: dict[str, Any], message: str):
        with pytest.raises(SkipwayError, match=message):
            curvature(mlp(5, 3), points(), "cross_entropy", **options)

    def test_a_loss_that_cannot_be_differentiated(self):
        with pytest.raises(SkipwayError, match="does not depend on these parameters by anything"):
            curvature(mlp(5, 3), points(), lambda output, target: output.detach().mean())


class TestMap:
    def test_each_point_against_the_written_out_hessian(self, tmp_path: Path):
        net, (x, y) = mlp(5, 6, 3).double(), points()
        found = curvature_map(net, (x, y), "cross_entropy", steps=(3, 4), tolerance=1e-8)
        from skipway.probe import random_direction

        directions = [random_direction(net, 0, number)[0] for number in range(2)]
        assert found.y is not None
        for i in range(3):
            for j in range(4):
                moved = copy.deepcopy(net)
                with torch.no_grad():
                    for name, parameter in moved.named_parameters():
                        for share, change in zip((found.x[i], found.y[j]), directions, strict=True):
                            parameter += share * change.get(name, torch.zeros(()))
                exact = np.linalg.eigvalsh(written_out(moved, x.double(), y).numpy())
                assert found.largest[i, j] == pytest.approx(exact[-1], rel=1e-7)
                assert found.smallest[i, j] == pytest.approx(exact[0], rel=1e-7)
        np.testing.assert_allclose(found.ratio, np.abs(found.smallest / found.largest))
        assert found.converged.all()
        assert load(found.save(tmp_path / "map")) == found
        found.plot()
        found.interactive()
        assert len(found.table()) == 12

    def test_a_line(self):
        found = curvature_map(mlp(5, 3), points(), "cross_entropy", dims=1, steps=3)
        assert found.largest.shape == (3,)
        found.plot()
        found.interactive()
