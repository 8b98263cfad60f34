"""Gradients by layer and block, and their split at skips, against autograd asked in other ways."""

from __future__ import annotations

import copy
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from skip_nets import NETS, Written, branch, built, chain
from torch import Tensor, nn

import skipway as sw
from skipway.errors import SkipwayError
from skipway.probe.batches import Batch
from skipway.probe.capture import capture
from skipway.probe.gradients import compare_gradients, gradients
from skipway.probe.monitor import GradientMonitor
from skipway.probe.quiet import quiet
from skipway.probe.result import load

mpl.use("Agg")


def at_sources(net: nn.Module, x: Tensor, y: Tensor) -> np.ndarray:
    """The norm of the gradient at every skip's source, by autograd alone."""
    graph = sw.trace(net, x)
    with quiet(net, training=True):
        tensors, output = capture(net, graph, Batch((x,), {}, y, len(x)), {skip.source for skip in graph.skips})
        sources = [tensors[skip.source] for skip in graph.skips]
        return np.array([g.norm().item() for g in torch.autograd.grad(F.cross_entropy(output, y), sources)])


class TestSplit:
    @pytest.mark.parametrize("name", NETS)
    def test_the_ways_together_are_the_gradient_at_the_source(self, name: str):
        net, (x, y) = built(name)
        found = gradients(net, (x, y), "cross_entropy")
        np.testing.assert_allclose(found.whole, at_sources(net.train(), x, y), rtol=1e-12)

    @pytest.mark.parametrize("name", [name for name in NETS if name not in ("dense", "nested")])
    def test_shortcut_and_branch_make_up_the_whole(self, name: str):
        net, (x, y) = built(name)
        found = gradients(net, (x, y), "cross_entropy")
        a, b = found.through_shortcut, found.through_branch
        assert (found.elsewhere == 0).all()
        np.testing.assert_allclose(found.whole**2, a**2 + b**2 + 2 * a * b * found.cosines, rtol=1e-10)

    @given(scale=st.floats(-3, 3), slope=st.floats(-2, 2), seed=st.integers(0, 10**6))
    def test_a_linear_block_has_the_split_of_the_formula(self, scale: float, slope: float, seed: int):
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(4, 4, generator=generator, dtype=torch.float64)
        x, head = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (3, 1))
        net: Any = Written(
            lambda self, x: F.linear(slope * x + scale * self.f(x), head), f=nn.Linear(4, 4, bias=False).double()
        )
        with torch.no_grad():
            net.f.weight.copy_(weight)
        graph = sw.trace(net, x)
        if len(graph.skips) != 1:
            return
        found = gradients(net, [(x, None)], lambda output, _: output.sum(), graph=graph)
        ones = torch.ones(3, 1, dtype=torch.float64) @ head
        assert found.through_shortcut[0] == pytest.approx((slope * ones).norm().item(), rel=1e-12, abs=1e-14)
        assert found.through_branch[0] == pytest.approx((scale * ones @ weight).norm().item(), rel=1e-12, abs=1e-14)

    def test_a_frozen_model_still_shows_how_gradients_flow(self):
        net, (x, y) = built("chain")
        free = gradients(net, (x, y), "cross_entropy")
        for parameter in net.parameters():
            parameter.requires_grad_(False)
        frozen = gradients(net, (x, y), "cross_entropy")
        np.testing.assert_allclose(frozen.whole, free.whole, rtol=1e-12)
        assert np.isnan(frozen.norms).all()

    def test_several_batches_are_as_one(self):
        net, (x, y) = built("chain")
        whole = gradients(net, (x, y), "cross_entropy")
        parts = gradients(net, [(x[:1], y[:1]), (x[1:], y[1:])], "cross_entropy")
        np.testing.assert_allclose(parts.norms, whole.norms, rtol=1e-12)
        np.testing.assert_allclose(parts.through_branch, whole.through_branch, rtol=1e-12)


class TestNorms:
    def test_by_parameter_they_are_autograds(self):
        net, (x, y) = built("projected")
        found = gradients(net, (x, y), "cross_entropy")
        twin = copy.deepcopy(net).train()
        F.cross_entropy(twin(x), y).backward()
        expected = {
            name: parameter.grad.norm().item()
            for name, parameter in twin.named_parameters()
            if parameter.grad is not None
        }
        for name, norm in zip(found.parameters, found.norms, strict=True):
            assert norm == pytest.approx(expected[name], rel=1e-10, abs=1e-15)

    def test_blocks_hold_the_parameters_of_their_module(self):
        net, (x, y) = built("projected")
        found = gradients(net, (x, y), "cross_entropy")
        table = found.table().set_index("parameter")["gradient"]
        inside = np.sqrt(sum(table[name] ** 2 for name in map(str, table.index) if name.startswith("1.")))
        assert dict(zip(found.blocks, found.block_norms, strict=True))["1"] == pytest.approx(inside)
        assert found.blocks[0] == "0"
        assert found.blocks[-1] == "6"

    def test_an_unused_parameter_has_no_gradient_and_a_frozen_one_none_asked_for(self):
        net: Any = Written(lambda self, x: self.used(x), used=nn.Linear(2, 2), unused=nn.Linear(2, 2))
        net.used.bias.requires_grad_(False)
        found = gradients(net, (torch.ones(3, 2), torch.zeros(3, dtype=torch.long)), "cross_entropy")
        norms = dict(zip(found.parameters, found.norms, strict=True))
        assert norms["unused.weight"] == 0
        assert np.isnan(norms["used.bias"])


class TestUpdates:
    def test_of_a_rate_they_are_rate_times_gradient_over_weight(self):
        net, batch = built("chain")
        found = gradients(net, batch, "cross_entropy", rate=0.1)
        np.testing.assert_allclose(found.updates, 0.1 * found.norms / found.weights)

    @pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
    def test_of_an_optimizer_they_are_of_the_step_that_it_then_takes(self, kind: Any):
        net, (x, y) = built("chain")
        optimizer = kind(net.parameters(), lr=0.01, weight_decay=0.1)
        torch.optim.lr_scheduler.StepLR(optimizer, 5)
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
        state, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(net.state_dict())
        found = gradients(net, (x, y), "cross_entropy", rate=optimizer)
        assert str(optimizer.state_dict()) == str(state)
        assert all(torch.equal(weights[name], tensor) for name, tensor in net.state_dict().items())
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        for name, update in zip(found.parameters, found.updates, strict=True):
            moved = (net.state_dict()[name] - weights[name]).norm() / weights[name].norm()
            assert update == pytest.approx(moved.item(), rel=1e-9)

    def test_an_optimizer_of_another_model_is_refused(self):
        net, batch = built("chain")
        other = torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)
        with pytest.raises(SkipwayError, match="holds none of this model's parameters"):
            gradients(net, batch, "cross_entropy", rate=other)


class TestFindings:
    def test_a_deep_plain_sigmoid_net_vanishes(self):
        layers = [layer for _ in range(12) for layer in (nn.Linear(6, 6), nn.Sigmoid())]
        net = nn.Sequential(*layers, nn.Linear(6, 3))
        found = gradients(net, (torch.randn(8, 6), torch.zeros(8, dtype=torch.long)), "cross_entropy")
        assert any(text.startswith("vanishing: the gradient of 0.weight is") for text in found.findings)

    def test_large_weights_explode(self):
        net = nn.Sequential(*[layer for _ in range(12) for layer in (nn.Linear(6, 6), nn.ReLU())], nn.Linear(6, 1))
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(8).abs_()
        found = gradients(net, [(torch.rand(8, 6), None)], lambda output, _: output.mean())
        assert any("exploding" in text for text in found.findings)

    def test_a_gradient_that_is_no_number_is_told(self):
        net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        found = gradients(net, [(torch.full((1, 2), float("nan")), None)], lambda output, _: output.sum())
        assert found.findings[0] == "exploding: the gradient of 0.weight (and 1 more) is not finite"

    def test_a_healthy_net_gets_none(self):
        net, batch = built("chain")
        assert gradients(net, batch, "cross_entropy").findings == ()


class TestResult:
    def test_tables_plot_and_file(self, tmp_path: Any):
        net, batch = built("projected")
        found = gradients(net, batch, "cross_entropy", rate=0.1)
        assert list(found.table("skip")["skip"]) == list(found.skips)
        assert len(found.table("block")) == len(found.blocks)
        assert load(found.save(tmp_path / "gradients")) == found
        panels = found.plot()
        assert panels[0].get_yscale() == "log"
        assert len(list(found.interactive().data)) == 3

    def test_two_models_side_by_side(self, tmp_path: Any):
        batch = torch.randn(4, 3, 32, 32), torch.arange(4)
        results = [
            gradients(sw.models.create("resnet20", skip=skip, num_classes=10, width=4), batch, "cross_entropy")
            for skip in ("none", "residual")
        ]
        both = compare_gradients(results, ["plain", "residual"])
        assert len(both.table()) == sum(len(one.parameters) for one in results)
        assert len(both.plot()[0].lines) == 2
        assert load(both.save(tmp_path / "both")) == both
        with pytest.raises(SkipwayError, match="a name each"):
            compare_gradients(results, ["plain"])

    def test_no_trace_is_left(self):
        net, batch = built("projected")
        net[1].bn1.weight.grad = torch.ones(4, dtype=torch.float64)  # pyright: ignore
        before = copy.deepcopy(net.state_dict())
        state = torch.get_rng_state()
        gradients(net, batch, "cross_entropy", rate=torch.optim.SGD(net.parameters(), 0.1))
        assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
        assert [name for name, p in net.named_parameters() if p.grad is not None] == ["1.bn1.weight"]
        assert torch.equal(torch.get_rng_state(), state)

    def test_slips_are_told(self, no_shape_checks: None):
        net, batch = built("chain")
        with pytest.raises(SkipwayError, match="no mode 'training'"):
            gradients(net, batch, "cross_entropy", mode="training")  # pyright: ignore[reportArgumentType]
        with pytest.raises(SkipwayError, match="a learning rate is greater than 0"):
            gradients(net, batch, "cross_entropy", rate=0.0)


class TestMonitor:
    def test_it_sees_what_the_probe_sees_and_how_far_parameters_move(self):
        net, (x, y) = built("chain")
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        graph = sw.trace(net, x)
        once = gradients(net, (x, y), "cross_entropy")
        monitor = GradientMonitor(net, graph)
        for _ in range(3):
            optimizer.zero_grad()
            with monitor.forward():
                output = net(x)
            F.cross_entropy(output, y).backward()
            monitor.after_backward()
            optimizer.step()
            monitor.after_step()
        history = monitor.result()
        first = dict(zip(history.parameters, history.norms[0], strict=True))
        assert [first[name] for name in once.parameters] == pytest.approx(list(once.norms), rel=1e-5)
        np.testing.assert_allclose(history.through_branch[0], once.through_branch, rtol=1e-12)
        np.testing.assert_allclose(history.updates, 0.1 * history.norms / history.weights, rtol=1e-4)
        assert len(history.plot()) == 2

    def test_it_changes_nothing_in_a_training(self):
        def trained(watched: bool) -> dict[str, Tensor]:
            torch.manual_seed(3)
            net = nn.Sequential(branch(), nn.Dropout(0.5), branch()).double()
            optimizer = torch.optim.Adam(net.parameters())
            monitor = GradientMonitor(net, sw.trace(net, torch.zeros(1, 6, dtype=torch.float64)), every=2)
            torch.manual_seed(4)
            for _ in range(4):
                x = torch.randn(5, 6, dtype=torch.float64)
                if watched:
                    with monitor.forward():
                        output = net(x)
                else:
                    output = net(x)
                optimizer.zero_grad()
                output.square().mean().backward()
                if watched:
                    monitor.after_backward()
                optimizer.step()
                if watched:
                    monitor.after_step()
            return net.state_dict()

        alone, watched = trained(False), trained(True)
        assert all(torch.equal(alone[name], watched[name]) for name in alone)

    def test_every_second_step(self):
        net = nn.Linear(2, 1)
        monitor = GradientMonitor(net, every=2, updates=False)
        for _ in range(5):
            net(torch.ones(1, 2)).sum().backward()
            monitor.after_backward()
        assert monitor.result().steps.tolist() == [0, 2, 4]

    def test_as_a_lightning_callback(self):
        import lightning

        class Module(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = nn.Linear(2, 1)

            def training_step(self, batch: Tensor) -> Tensor:
                return self.net(batch).square().mean()

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), 0.1)

        module = Module()
        monitor = GradientMonitor(module)
        data = torch.utils.data.DataLoader(list(torch.randn(6, 2)), batch_size=2)  # pyright: ignore[reportArgumentType]
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lightning.Trainer(
                max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                enable_model_summary=False, callbacks=[monitor.lightning()],
            ).fit(module, data)  # fmt: skip
        history = monitor.result()
        np.testing.assert_allclose(history.updates, 0.1 * history.norms / history.weights, rtol=1e-4)
        assert len(history.steps) == 3

    def test_slips_are_told(self):
        monitor = GradientMonitor(chain(1))
        with pytest.raises(SkipwayError, match="nothing was measured yet"):
            monitor.result()
        with pytest.raises(SkipwayError, match="needs graph="), monitor.forward():
            pass
