"""Edited models in what surrounds a model: compilers, exporters, checkpointing, autocast, copies, several processes."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.edit.edit_nets import Chain, ConvNet, Repeated, equal, pulled
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from skipway import edit
from skipway.connect import Constant, Residual, ReZero, StochasticDepth
from skipway.errors import SkipwayError
from skipway.graph import trace

Edit = Callable[[nn.Module, Tensor], nn.Module]

EDITS: dict[str, Edit] = {
    "cut": lambda model, x: edit.cut(model, trace(model, x).skips[1]),
    "lesion": lambda model, x: edit.lesion(model, trace(model, x).skips[1]),
    "scale": lambda model, x: edit.swap(model, trace(model, x), Residual(scale=Constant(0.5))),
    "rezero": lambda model, x: edit.swap(model, trace(model, x), Residual(scale=ReZero(initial=0.5))),
    "pre-norm": lambda model, x: edit.swap(model, trace(model, x).skips[:2], "pre-norm"),
    "stochastic depth": lambda model, x: edit.swap(model, trace(model, x), "stochastic-depth"),
    "graft": lambda model, x: edit.graft(model, ("blocks.0", "blocks.1"), graph=trace(model, x)),
    "reorder": lambda model, x: edit.reorder(model, ["blocks.0", "blocks.1"], [1, 0], graph=trace(model, x)),
    "twice": lambda model, x: EDITS["lesion"](EDITS["scale"](model, x), x),
}


@pytest.fixture(params=EDITS, name="make")
def _make(request: pytest.FixtureRequest) -> Edit:
    return EDITS[request.param]


def chain() -> tuple[nn.Module, Tensor]:
    return Chain(), torch.randn(3, 4)


def convolutions() -> tuple[nn.Module, Tensor]:
    return ConvNet(), torch.randn(2, 3, 8, 8)


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("build", [chain, pytest.param(convolutions, marks=pytest.mark.slow)])
def test_compile_in_one_graph(make: Edit, build: Callable[[], tuple[nn.Module, Tensor]]):
    model, x = build()
    edited = make(model, x).eval()
    torch._dynamo.reset()
    compiled = torch.compile(edited, backend="eager", fullgraph=True)
    equal(compiled(x), edited(x))
    equal_gradients(pulled(compiled, x), pulled(edited, x))  # pyright: ignore


def equal_gradients(found: list[Any], expected: list[Any], tolerance: float = 1e-6) -> None:
    """What overwrites a branch's output leaves it gradients of zero where the branch would not have run."""
    pairs = zip(found, expected, strict=True)
    equal(found, [torch.zeros_like(a) if b is None and a is not None else b for a, b in pairs], tolerance)


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("index", [1, pytest.param(0, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_compile_one_call_of_several(index: int):
    model, x = Repeated(), torch.randn(3, 4)
    torch._dynamo.reset()
    edited = edit.lesion(model, trace(model, x).skips[index])
    equal(torch.compile(edited, backend="eager", fullgraph=True)(x), edited(x))


@pytest.mark.slow
@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.filterwarnings("ignore")
def test_compile_to_machine_code():
    model, x = convolutions()
    for name in ("lesion", "cut", "rezero"):
        torch._dynamo.reset()
        edited = EDITS[name](model, x).train()
        alike = copy.deepcopy(edited)
        equal_gradients(pulled(torch.compile(edited, fullgraph=True), x), pulled(alike, x), 1e-4)  # pyright: ignore


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.filterwarnings("ignore")
def test_export(make: Edit):
    for build in (chain, convolutions):
        model, x = build()
        edited = make(model, x).eval()
        equal(torch.export.export(edited, (x,), strict=False).module()(x), edited(x))


@pytest.mark.slow
def test_strict_export():
    """In a process of its own: the shape checks of the suite stand between the exporter and the code."""
    script = """
import torch
from tests.edit.test_surroundings import EDITS, chain, convolutions
for name, make in EDITS.items():
    for build in (chain, convolutions):
        model, x = build()
        edited = make(model, x).eval()
        torch.testing.assert_close(torch.export.export(edited, (x,), strict=True).module()(x), edited(x))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.filterwarnings("ignore")
def test_onnx():
    import onnxruntime

    model, x = convolutions()
    for name in ("lesion", "cut", "rezero", "pre-norm"):
        edited = EDITS[name](model, x).eval()
        file = io.BytesIO()
        program = torch.onnx.export(edited, (x,), dynamo=True)
        assert program is not None
        program.save(file)  # pyright: ignore[reportArgumentType]
        session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
        found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
        equal(torch.from_numpy(found), edited(x), 1e-4)


@pytest.mark.filterwarnings("ignore")
def test_trace_to_torchscript(make: Edit):
    """What ONNX's exporter without `dynamo` is given; it knows no copying into a tensor."""
    model, x = convolutions()
    edited = make(model, x).eval()
    traced: Any = torch.jit.trace(edited, (x,), check_trace=False)
    equal(traced(2 * x), edited(2 * x))
    assert "aten::copy_" not in str(traced.inlined_graph)


def test_copies_and_files(make: Edit):
    model, x = chain()
    edited = make(model, x).eval()
    expected = edited(x)
    file = io.BytesIO()
    torch.save(edited, file)
    file.seek(0)
    for other in (copy.deepcopy(edited), pickle.loads(pickle.dumps(edited)), torch.load(file, weights_only=False)):
        assert torch.equal(other(x), expected)
        assert len(edit.history(other)) == len(edit.history(edited))
        assert torch.equal(edit.undo(other, None)(x), model(x))
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1)
        assert torch.equal(edited(x), expected)


def test_functional_calls(make: Edit):
    model, x = chain()
    edited = make(model, x).eval()
    weights = dict(edited.named_parameters())
    equal(torch.func.functional_call(edited, weights, (x,)), edited(x))  # pyright: ignore[reportArgumentType]
    equal(torch.vmap(edited)(x), edited(x), 1e-5)
    found = torch.func.grad(lambda w: torch.func.functional_call(edited, w, (x,)).square().sum())(weights)
    pulled(edited, x)
    for name, parameter in edited.named_parameters():
        equal(found[name], torch.zeros_like(parameter) if parameter.grad is None else parameter.grad, 1e-5)


def test_autocast(make: Edit):
    model, x = chain()
    edited = make(model, x).eval()
    with torch.autocast("cpu", torch.bfloat16):
        equal(edited(x).float(), edited(x).float())
        equal(edited(x).float(), edited.float()(x).float())
    equal(edited(x), edited(x).float(), 1e-6)


def test_data_parallel_on_one_device(make: Edit):
    model, x = chain()
    edited = make(model, x).eval()
    equal(nn.DataParallel(edited)(x), edited(x))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("verb", ["cut", "lesion", "swap"])
def test_blocks_that_are_run_again_in_the_backward_pass(verb: str, reentrant: bool):
    model, again, x = Chain(), Chain(reentrant=reentrant), torch.randn(3, 4)
    again.load_state_dict(model.state_dict())
    choice = {"skip": Residual(scale=ReZero(initial=0.5))} if verb == "swap" else {}
    ours = getattr(edit, verb)(again, trace(again, x).skips[1:], **choice)
    theirs = getattr(edit, verb)(model, trace(model, x).skips[1:], **choice)
    equal(pulled(ours, x), pulled(theirs, x))


@pytest.mark.parametrize("reentrant", [True, False])
def test_branches_dropped_by_chance_are_dropped_again(reentrant: bool):
    model, again, x = Chain(6), Chain(6, reentrant=reentrant), torch.randn(3, 4)
    again.load_state_dict(model.state_dict())
    choice = Residual(drop=StochasticDepth(0.5, "constant"))
    ours, theirs = (edit.swap(one, trace(one, x), choice).train() for one in (again, model))
    for seed in range(10):
        found, expected = pulled(ours, x, seed=seed), pulled(theirs, x, seed=seed)
        equal(found, expected)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("verb", ["cut", "lesion", "swap"])
def test_a_checkpoint_inside_the_host_is_refused(verb: str, reentrant: bool):
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(4, 4)

        def part(self, x: Tensor) -> Tensor:
            return x + torch.tanh(self.f(x))

        def forward(self, x: Tensor) -> Tensor:
            return 2 * checkpoint(self.part, x, use_reentrant=reentrant)  # pyright: ignore

    model, x = Inside(), torch.randn(3, 4, requires_grad=True)
    choice = {"skip": Residual(scale=Constant(0.5))} if verb == "swap" else {}
    edited = getattr(edit, verb)(model, trace(model, x), **choice)
    with pytest.raises(SkipwayError, match=r"torch.utils.checkpoint, .* the edit would not hold"):
        edited(x)
    assert torch.overrides._get_current_function_mode_stack() == []


@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("masked", [True, False])
def test_the_fused_kernel_of_encoder_layers_does_not_pass_an_edit_by(layers: int, masked: bool):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.1)
    model = (nn.TransformerEncoder(layer, layers) if layers else layer).eval()
    x = torch.randn(2, 3, 8)
    mask = torch.tensor([[False, False, True], [False, False, False]]) if masked else None
    graph = trace(model, x, src_key_padding_mask=mask)
    kept = ~torch.zeros(2, 3, dtype=torch.bool) if mask is None else ~mask
    before = {id(module): dict(vars(module)) for module in model.modules()}
    for edited in (
        edit.cut(model, graph.skips[-1]),
        edit.lesion(model, graph.skips[-1]),
        edit.swap(model, graph, Residual(scale=Constant(0.5))),
        edit.graft(model, "layers.1.linear1" if layers else "linear1", Residual(), graph=graph),
    ):
        expected = edited(x, src_key_padding_mask=mask)
        with torch.no_grad():
            equal(edited(x, src_key_padding_mask=mask)[kept], expected[kept])
        undone = edit.undo(edited)
        for mine, theirs in zip(undone.modules(), model.modules(), strict=True):
            kept_as = before[id(theirs)]
            assert {k: v for k, v in vars(mine).items() if isinstance(v, (int, bool))} == {
                k: v for k, v in kept_as.items() if isinstance(v, (int, bool))
            }


def test_what_is_the_same_each_time_is_marked_as_torch_marks_it():
    from skipway.edit.meta import same_each_time

    def ours() -> None: ...

    def theirs() -> None: ...

    torch.compiler.assume_constant_result(theirs)
    assert vars(same_each_time(ours)) == vars(theirs)


def test_editing_does_not_import_the_compiler():
    code = "import sys, skipway.edit, skipway.probe, skipway.study; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _train(rank: int, path: str, name: str) -> None:
    torch.manual_seed(0)
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    model, x = chain()
    edited = EDITS[name](model, x)
    parallel = nn.parallel.DistributedDataParallel(edited, find_unused_parameters=name == "lesion")
    parallel(x[rank : rank + 1]).square().sum().backward()
    torch.manual_seed(0)
    alone = EDITS[name](*chain())
    (alone(x[:2]).square().sum() / 2).backward()
    for mine, theirs in zip(edited.parameters(), alone.parameters(), strict=True):
        assert (theirs.grad is None) or torch.allclose(mine.grad, theirs.grad, atol=1e-6)  # pyright: ignore
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["rezero", "lesion"])
def test_two_processes(name: str, tmp_path: Any):
    torch.multiprocessing.spawn(_train, args=(str(tmp_path / "store"), name), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
