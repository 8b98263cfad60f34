"""What `trace` sees of a forward pass, and that it leaves everything as it was."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from graph_nets import Answer, Basic, Written, resnet18
from torch import Tensor, nn

from skipway.errors import SkipwayError
from skipway.graph import SkipGraph, trace
from skipway.graph.ir import Ref, Site


def sites(graph: SkipGraph) -> list[str]:
    return [str(skip.site) for skip in graph.skips]


def names(graph: SkipGraph) -> list[str]:
    return [operation.name for operation in graph.trace.operations]


def maker(graph: SkipGraph, value: int) -> str:
    made = graph.trace.operation_of(value)
    assert made is not None
    return made.name


def linear() -> nn.Linear:
    return nn.Linear(4, 4)


class TestSites:
    def test_a_site_names_module_operation_and_ordinal(self):
        graph = trace(nn.Sequential(Basic(4, 4, 1), Basic(4, 8, 2)), torch.randn(2, 4, 8, 8))
        assert sites(graph) == ["0:add_:0", "1:add_:0"]
        assert graph.skips[0].site == Site("0", "add_", 0)

    def test_ordinals_count_within_one_call_and_calls_are_told_apart(self):
        block = Written(lambda self, x: (x + 1) + self.inner(x), inner=linear())
        model = Written(lambda self, x: self.block(self.block(x)), block=block)
        graph = trace(model, torch.randn(2, 4))
        assert sites(graph) == ["block:add:1", "block@1:add:1"]

    def test_sites_hold_from_run_to_run_and_over_other_shapes(self):
        model = resnet18().eval()
        assert sites(trace(model, torch.randn(1, 3, 16, 16))) == sites(trace(model, torch.randn(2, 3, 32, 24)))

    @pytest.mark.parametrize("site", [Site("", "add"), Site("a.b", "cat", 3), Site("a", "add_", 1, 2)])
    def test_a_site_reads_back(self, site: Site):
        assert Site.parse(str(site)) == site

    def test_what_is_no_site_is_refused(self):
        with pytest.raises(SkipwayError, match="'layer1' is not a site"):
            Site.parse("layer1")


WAYS_TO_ADD = {
    "add": lambda self, x: x + self.f(x),
    "radd": lambda self, x: x.__radd__(self.f(x)),
    "add_method": lambda self, x: x.add(self.f(x)),
    "add_function": lambda self, x: torch.add(x, self.f(x)),
    "aten": lambda self, x: torch.ops.aten.add.Tensor(x, self.f(x)),
    "sum": lambda self, x: sum([x, self.f(x)]),
    "stack_sum": lambda self, x: torch.stack([x, self.f(x)], 1).sum(1),
    "list_stack_mean": lambda self, x: torch.stack([x, self.f(x)]).mean(0),
    "einsum": lambda self, x: torch.stack([x, self.f(x)]).sum(dim=0),
    "subtract_negative": lambda self, x: x - self.f(x),
    "lerp": lambda self, x: torch.lerp(x, self.f(x), 0.5),
    "addcmul": lambda self, x: torch.addcmul(x, self.f(x), self.f(x)),
    "keyword": lambda self, x: torch.add(input=x, other=self.f(x)),
    "addmm": lambda self, x: torch.addmm(x, x, self.f.weight),
}


@pytest.mark.parametrize("way", WAYS_TO_ADD)
def test_every_way_to_add_is_seen(way: str):
    graph = trace(Written(WAYS_TO_ADD[way], f=linear()), torch.randn(2, 4))
    assert len(graph.skips) == 1
    assert graph.skips[0].shortcut == "identity"
    assert graph.skips[0].span.most == 1


WAYS_TO_ADD_IN_PLACE = {
    "iadd": lambda self, x: _iadd(self.f(x), x),
    "add_": lambda self, x: self.f(x).add_(x),
    "out": lambda self, x: _add_out(self.f(x), x),
    "through_a_view": lambda self, x: _add_through_view(self.f(x), x),
    "into_a_slice": lambda self, x: _add_to_slice(self.f(x), x),
    "to_a_clone_of_x": lambda self, x: _iadd(x.clone(), self.f(x)),
}


def _iadd(a: Tensor, b: Tensor) -> Tensor:
    a += b
    return a


def _add_out(a: Tensor, b: Tensor) -> Tensor:
    torch.add(a, b, out=a)
    return a


def _add_through_view(a: Tensor, b: Tensor) -> Tensor:
    a.view(-1).add_(b.view(-1))
    return a


def _add_to_slice(a: Tensor, b: Tensor) -> Tensor:
    a[:, :2] += b[:, :2]
    return a


@pytest.mark.parametrize("way", WAYS_TO_ADD_IN_PLACE)
def test_every_way_to_add_in_place_is_seen(way: str):
    graph = trace(Written(WAYS_TO_ADD_IN_PLACE[way], f=linear()), torch.randn(2, 4))
    assert len(graph.skips) == 1
    assert graph.skips[0].site.operation == "add_"


def test_an_in_place_operation_makes_a_new_value_and_readers_before_it_keep_the_old_one():
    def forward(self, x):
        h = self.a(x)
        kept = h * 1.0
        F.relu(h, inplace=True)
        return self.b(h) + kept

    graph = trace(Written(forward, a=linear(), b=linear()), torch.randn(2, 4))
    (skip,) = graph.skips
    # The common tensor is h before the activation; the branch reads it after.
    assert maker(graph, skip.source) == "linear"
    assert [graph.trace.operations[index].name for index in skip.branch_operations] == ["relu", "linear"]


def test_a_skip_that_reads_what_an_in_place_activation_left_reads_the_new_value():
    def forward(self, x):
        h = self.a(x)
        return self.b(F.relu(h, inplace=True)) + h

    (skip,) = trace(Written(forward, a=linear(), b=linear()), torch.randn(2, 4)).skips
    graph = trace(Written(forward, a=linear(), b=linear()), torch.randn(2, 4))
    assert maker(graph, skip.source) == "relu"


def test_alpha_is_kept_and_makes_a_scaled_add():
    graph = trace(Written(lambda self, x: torch.add(x, self.f(x), alpha=0.5), f=linear()), torch.randn(2, 4))
    assert graph.skips[0].kind == "scaled add"
    assert graph.trace.operations[graph.skips[0].merge].kwargs == {"alpha": 0.5}


def test_arguments_keep_their_order_and_find_their_names():
    graph = trace(nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2), torch.randn(1, 4, 8, 8))
    (conv,) = graph.trace.operations
    assert conv.argument("groups") == 2
    assert conv.argument("stride") == (2, 2)
    assert isinstance(conv.argument("weight"), Ref)
    weight = conv.value("weight")
    assert weight is not None
    assert graph.trace.values[weight].name == "weight"
    assert graph.trace.values[weight].shape == (8, 2, 3, 3)


def test_views_chunks_and_tuples_are_followed():
    def forward(self, x):
        first, second = x.chunk(2, dim=1)
        (second,) = (torch.split(self.f(second), 4, dim=1),)
        return torch.cat([first, *second], dim=1).reshape(2, -1)

    graph = trace(Written(forward, f=nn.Conv1d(4, 4, 1)), torch.randn(2, 8, 3))
    assert [(skip.kind, skip.shortcut) for skip in graph.skips] == [("concat", "identity")]


def test_several_inputs_and_nested_outputs_have_names():
    @dataclass
    class Output:
        logits: Tensor
        hidden: tuple[Tensor, ...]

    def forward(self, a, b):
        h = self.f(a) + b
        return Output(h.sum(-1), (h, a * 2))

    graph = trace(Written(forward, f=linear()), torch.randn(2, 4), torch.randn(2, 4))
    assert graph.trace.output_names == ("logits", "hidden[0]", "hidden[1]")
    assert [graph.trace.values[index].shape for index in graph.trace.outputs] == [(2,), (2, 4), (2, 4)]

    class Two(nn.Module):
        def forward(self, image: Tensor, *, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"sum": image + batch["mask"], "pair": Answer(image * 2, image * 3)}  # type: ignore[dict-item]

    graph = trace(Two(), torch.randn(2), batch={"mask": torch.randn(2)})
    assert [graph.trace.values[index].name for index in graph.trace.inputs] == ["image", "batch.mask"]
    assert graph.trace.output_names == ("sum", "pair.first", "pair.second")


def test_control_flow_is_followed_as_it_went():
    def forward(self, x):
        for _ in range(3 if x.sum() > 0 else 1):
            x = x + self.f(x)
        return x

    model = Written(forward, f=nn.Linear(4, 4, bias=False))
    assert len(trace(model, torch.ones(1, 4)).skips) == 3
    assert len(trace(model, -torch.ones(1, 4)).skips) == 1


def test_sizes_masks_and_indices_are_dropped():
    def forward(self, x):
        mask = torch.arange(x.size(1)).lt(2).float() * -1e9
        h = x.view(x.size(0), x.shape[1], -1)
        for _ in range(2):
            h = self.f(h) + mask[None, :, None]
        return h

    graph = trace(Written(forward, f=linear()), torch.randn(2, 3, 4))
    assert graph.skips == ()
    assert set(names(graph)) == {"view", "linear", "add"}


class TestFusedPaths:
    @pytest.mark.parametrize("mode", ["train", "eval"])
    @pytest.mark.parametrize("gradients", [True, False])
    @pytest.mark.parametrize("norm_first", [True, False])
    def test_encoder_layers(self, mode: str, gradients: bool, norm_first: bool):
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
        model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        getattr(model, mode)()
        with torch.set_grad_enabled(gradients):
            graph = trace(model, torch.randn(2, 3, 8))
        assert [skip.span for skip in graph.skips] == [(2, 2)] * 4

    def test_nested_tensors(self):
        model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
        padding = torch.tensor([[False, False, True], [False, True, True]])
        with torch.no_grad():
            graph = trace(model, torch.randn(2, 3, 8), src_key_padding_mask=padding)
        assert len(graph.skips) == 4

    def test_decoder(self):
        model = nn.Transformer(8, 2, 2, 2, 16, batch_first=True).eval()
        graph = trace(model, torch.randn(1, 3, 8), torch.randn(1, 2, 8))
        assert [skip.kind for skip in graph.skips] == ["add"] * (2 * 2 + 2 * 3)

    @pytest.mark.parametrize("mode", ["train", "eval"])
    def test_attention(self, mode: str):
        model = Written(
            lambda self, x: x + self.attention(x, x, x)[0], attention=nn.MultiheadAttention(8, 2, batch_first=True)
        )
        getattr(model, mode)()
        with torch.no_grad():
            graph = trace(model, torch.randn(2, 3, 8))
        assert len(graph.skips) == 1
        assert "multi_head_attention_forward" in names(graph)

    def test_scaled_dot_product_attention(self):
        def forward(self, x):
            q, k, v = self.qkv(x).view(2, 3, 3, 2, 2).permute(2, 0, 3, 1, 4)
            return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 3, 4))

        graph = trace(Written(forward, qkv=nn.Linear(4, 12), out=linear()), torch.randn(2, 3, 4))
        assert [skip.span for skip in graph.skips] == [(2, 2)]

    def test_recurrent_layers(self):
        model = Written(lambda self, x: x + self.lstm(x)[0], lstm=nn.LSTM(4, 4, batch_first=True))
        assert [skip.span for skip in trace(model, torch.randn(2, 3, 4)).skips] == [(1, 1)]


class TestGradientCuts:
    @pytest.mark.parametrize("cut", ["detach", "data", "no_grad"])
    def test_a_shortcut_without_gradient_is_found_and_marked(self, cut: str):
        def forward(self, x):
            h = self.a(x)
            if cut == "no_grad":
                with torch.no_grad():
                    kept = h * 1.0
            else:
                kept = h.detach() if cut == "detach" else h.data
            return kept + self.b(h)

        (skip,) = trace(Written(forward, a=linear(), b=linear()), torch.randn(2, 4)).skips
        assert not skip.gradient

    def test_tracing_inside_no_grad_does_not_cut(self):
        with torch.no_grad():
            (skip,) = trace(Written(lambda self, x: x + self.f(x), f=linear()), torch.randn(2, 4)).skips
        assert skip.gradient

    def test_frozen_models_have_the_same_skips(self):
        model = resnet18().requires_grad_(False)
        assert len(trace(model, torch.randn(2, 3, 16, 16)).skips) == 8


def test_a_graph_can_be_copied_and_pickled():
    graph = trace(resnet18(), torch.randn(2, 3, 16, 16))
    for again in (pickle.loads(pickle.dumps(graph)), copy.deepcopy(graph)):
        assert again.skips == graph.skips


def test_the_meta_device_needs_no_memory():
    with torch.device("meta"):
        layer = nn.TransformerEncoderLayer(16384, 64, 4 * 16384, batch_first=True)
        graph = trace(nn.TransformerEncoder(layer, 8, enable_nested_tensor=False), torch.empty(1, 16, 16384))
    assert sum(torch.Size(shape).numel() for shape in graph.trace.parameters.values()) > 25e9
    assert len(graph.skips) == 16
    assert graph.skips[-1].shape == (1, 16, 16384)


def test_autocast_and_channels_last_and_double():
    for model, x in (
        (resnet18().double(), torch.randn(2, 3, 16, 16, dtype=torch.float64)),
        (
            resnet18().to(memory_format=torch.channels_last),  # pyright: ignore[reportCallIssue]
            torch.randn(2, 3, 16, 16).to(memory_format=torch.channels_last),
        ),
    ):
        assert len(trace(model, x).skips) == 8
    with torch.autocast("cpu", torch.bfloat16):
        assert len(trace(resnet18(), torch.randn(2, 3, 16, 16)).skips) == 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda():
    graph = trace(resnet18().cuda(), torch.randn(2, 3, 16, 16, device="cuda"))
    assert len(graph.skips) == 8


class TestMistakes:
    def test_a_class_in_place_of_a_module(self, no_shape_checks: None):
        with pytest.raises(SkipwayError, match=r"trace takes a torch.nn.Module, and this is the class Linear"):
            trace(nn.Linear, torch.randn(2, 4))  # pyright: ignore[reportArgumentType]

    def test_a_function_in_place_of_a_module(self, no_shape_checks: None):
        with pytest.raises(SkipwayError, match="this is a builtin_function_or_method"):
            trace(torch.relu, torch.randn(2, 4))  # pyright: ignore[reportArgumentType]

    def test_missing_inputs(self):
        with pytest.raises(
            SkipwayError, match=r"Linear.forward cannot be called with these arguments: missing a required"
        ):
            trace(linear())

    def test_lazy_modules(self):
        with pytest.raises(SkipwayError, match="weight has no shape yet: run the model once"):
            trace(nn.LazyLinear(4), torch.randn(2, 4))
