"""Data in every form that people hold it in, and losses that weigh every sample the same."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from probe_nets import mlp, points
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from skipway.errors import SkipwayError
from skipway.probe import read_batches
from skipway.probe.losses import count_errors, find_loss, scorer

NET = mlp(5, 3).requires_grad_(False)
X, Y = points(10)


class Named(nn.Module):
    """Takes its inputs by name, gives its loss with its output, as Hugging Face's models do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = NET

    def forward(self, x: Tensor, shift: Tensor | None = None, labels: Tensor | None = None) -> SimpleNamespace:
        logits = self.net(x if shift is None else x + shift)
        return SimpleNamespace(logits=logits, loss=None if labels is None else F.cross_entropy(logits, labels))


EXPECTED = float(F.cross_entropy(NET(X), Y))


class TestForms:
    @pytest.mark.parametrize(
        "data",
        [
            (X, Y),
            [X, Y],
            [(X, Y)],
            ((X[:7], Y[:7]), (X[7:], Y[7:])),
            [(X[:7], Y[:7]), [X[7:], Y[7:]]],
            ((X,), Y),
            iter([(X[:9], Y[:9]), (X[9:], Y[9:])]),
            DataLoader(TensorDataset(X, Y), batch_size=4),
            ({"input": X}, Y),
            {"input": X, "labels": Y},
            [{"input": X[:3], "label": Y[:3]}, {"input": X[3:], "target": Y[3:]}],
            (X.double(), Y),
        ],
    )
    def test_all_give_the_same_mean(self, data: Any):
        batches = read_batches(NET, data, "cross_entropy")
        assert batches.samples == 10
        assert batches.mean_loss(NET) == pytest.approx(EXPECTED, rel=1e-6)

    def test_the_loss_that_an_output_carries(self):
        model = Named()
        for data in ({"x": X, "labels": Y}, [{"x": X[:7], "labels": Y[:7]}, {"x": X[7:], "labels": Y[7:]}]):
            batches = read_batches(model, data)
            assert batches.mean_loss(model) == pytest.approx(EXPECTED, rel=1e-6)
        # With a loss of its own, the labels are targets and no inputs.
        batches = read_batches(model, {"x": X, "labels": Y}, "cross_entropy")
        assert "labels" not in batches.items[0].kwargs
        assert batches.mean_loss(model) == pytest.approx(EXPECTED, rel=1e-6)

    def test_an_iterator_is_read_once_and_kept(self):
        batches = read_batches(NET, ((X[i : i + 2], Y[i : i + 2]) for i in range(0, 10, 2)), "cross_entropy")
        assert batches.mean_loss(NET) == batches.mean_loss(NET)
        assert len(batches) == 5

    def test_a_shuffled_loader_gives_the_same_batches_at_every_pass(self):
        loader = DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True)
        batches = read_batches(NET, loader, "cross_entropy")
        first, second = ([batch.args[0] for batch in batches] for _ in range(2))
        assert all(map(torch.equal, first, second))

    def test_samples_are_taken_from_the_front(self):
        for data in ((X, Y), [(X[:4], Y[:4]), (X[4:], Y[4:])]):
            batches = read_batches(NET, data, "cross_entropy", samples=6)
            assert batches.samples == 6
            assert batches.mean_loss(NET) == pytest.approx(float(F.cross_entropy(NET(X[:6]), Y[:6])), rel=1e-6)

    def test_precision_and_device_follow_the_model(self):
        batches = read_batches(mlp(5, 3).double(), (X, Y), "cross_entropy")
        assert batches.items[0].args[0].dtype == torch.float64
        assert batches.items[0].targets.dtype == torch.int64


class TestWeights:
    @given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    def test_a_ragged_last_batch_does_not_bias(self, sizes: list[int]):
        """hessian-eigenthings averages the means of batches."""
        x, y = points(sum(sizes))
        parts = list(zip(x.split(sizes), y.split(sizes), strict=True))
        whole = float(F.cross_entropy(NET(x), y))
        assert read_batches(NET, parts, "cross_entropy").mean_loss(NET) == pytest.approx(whole, rel=1e-5)

    def test_ignored_targets_do_not_count(self):
        y = Y.clone()
        y[:5] = -100
        parts = [(X[:6], y[:6]), (X[6:], y[6:])]
        assert read_batches(NET, parts, "cross_entropy").shares() == [0.2, 0.8]
        whole = float(F.cross_entropy(NET(X), y))
        assert read_batches(NET, parts, "cross_entropy").mean_loss(NET) == pytest.approx(whole, rel=1e-6)
        with pytest.raises(SkipwayError, match="every target is ignored"):
            read_batches(NET, (X, torch.full_like(Y, -100)), "cross_entropy").shares()


class TestLosses:
    def test_classes_may_stand_last(self):
        logits, targets = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
        expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        assert torch.equal(find_loss("cross_entropy")(logits, targets), expected)
        images, masks = torch.randn(2, 3, 4, 4), torch.randint(3, (2, 4, 4))
        assert torch.equal(find_loss("cross_entropy")(images, masks), F.cross_entropy(images, masks))

    def test_a_column_of_predictions_meets_a_row_of_targets(self):
        """Broadcasting would make a 5 x 5 table of differences."""
        predictions, targets = torch.randn(5, 1), torch.randn(5)
        assert torch.equal(find_loss("mse")(predictions, targets), F.mse_loss(predictions[:, 0], targets))

    def test_errors_are_counted_where_targets_are_classes(self):
        assert count_errors(torch.eye(3), torch.tensor([0, 2, -100])) == (1, 2)
        assert count_errors(torch.eye(3), torch.randn(3)) is None
        assert count_errors(torch.randn(3), torch.tensor([0, 2, 1])) is None
        assert count_errors(SimpleNamespace(logits=torch.eye(2)), torch.tensor([0, 1])) == (0, 2)
        assert count_errors((torch.eye(2), None), torch.tensor([1, 1])) == (1, 2)


class TestScorer:
    @pytest.mark.parametrize(
        ("output", "targets"),
        [
            (torch.randn(37, 11) * 20, torch.randint(11, (37,))),
            (torch.randn(5, 3), torch.tensor([0, -100, 2, -100, 1])),
            (torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])),
            (torch.randn(4, 3, 5), torch.randint(3, (4, 5))),
            (SimpleNamespace(logits=torch.randn(4, 3)), torch.tensor([0, 1, 2, 0])),
            ((torch.randn(4, 3, dtype=torch.float64), None), torch.tensor([0, 1, 2, 0])),
        ],
    )
    def test_is_the_loss_and_who_is_told_wrong(self, output: Any, targets: Tensor):
        loss = find_loss("cross_entropy")
        value, errors = scorer(loss, targets)(output)
        assert value == pytest.approx(float(loss(output, targets)), rel=1e-6)
        assert errors == count_errors(output, targets)

    def test_a_function_of_that_name_is_asked_itself(self):
        def cross_entropy(output: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(output, targets, label_smoothing=0.5)

        found, _ = scorer(find_loss(cross_entropy), Y)(NET(X))
        assert found == pytest.approx(F.cross_entropy(NET(X), Y, label_smoothing=0.5).item())


class TestRefusals:
    @pytest.mark.parametrize(
        ("data", "loss", "message"),
        [
            (X, "cross_entropy", "data is a Tensor; it must be a batch"),
            (3, "cross_entropy", "data is a int; it must be a batch"),
            ([], "cross_entropy", "the batches are empty"),
            (iter([]), "cross_entropy", "an iterator may have been read before"),
            ([X], "cross_entropy", r"a batch is a tensor of shape \(10, 5\) alone"),
            ([(X, Y, Y)], "cross_entropy", "a batch is a tuple of 3"),
            ((X, Y[:4]), "cross_entropy", "inputs of 10 samples and targets of 4; they must agree"),
            ({"x": X}, "cross_entropy", "needs the targets under one of: labels"),
            (("words", Y), "cross_entropy", "the inputs of a batch are a str"),
            ((X, Y), "cross_entrpy", "no loss 'cross_entrpy'; did you mean 'cross_entropy'"),
        ],
    )
    def test_one_sentence(self, data: Any, loss: str, message: str):
        with pytest.raises(SkipwayError, match=message):
            read_batches(NET, data, loss)

    def test_samples(self):
        with pytest.raises(SkipwayError, match="samples=0: at least 1"):
            read_batches(NET, (X, Y), "cross_entropy", samples=0)

    def test_losses_that_are_none(self):
        batches = read_batches(NET, (X, Y), lambda output, target: (output.argmax(1) - target).abs())
        with pytest.raises(SkipwayError, match=r"the loss gave a tensor of shape \(10,\); it must give the mean"):
            batches.mean_loss(NET)
        with pytest.raises(SkipwayError, match=r"the class CrossEntropyLoss: call it, as in CrossEntropyLoss\(\)"):
            read_batches(NET, (X, Y), cast(Any, nn.CrossEntropyLoss))
        with pytest.raises(SkipwayError, match="the model's output carries no loss: give one"):
            read_batches(NET, (X, Y)).mean_loss(NET)
        with pytest.raises(SkipwayError, match="the targets hold the class 22, and the model tells 3 classes apart"):
            read_batches(NET, (X, Y + 20 * (Y > 1)), "cross_entropy").mean_loss(NET)
        with pytest.raises(SkipwayError, match=r"needs targets of shape \(10,\) with a class number"):
            read_batches(NET, (X, torch.zeros(10, 3, dtype=torch.long)), "cross_entropy").mean_loss(NET)
        with pytest.raises(SkipwayError, match="needs targets of the same shape"):
            read_batches(NET, (X, torch.randn(10, 7)), "mse").mean_loss(NET)
