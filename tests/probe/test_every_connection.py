"""Probes run on a network with any connection, as they do on the residual one."""

import pytest
import torch

from skipway import connect, models, probe
from skipway.errors import SkipwayError

BATCH = (torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(4))


@pytest.mark.parametrize("skip", connect.names())
def test_lesions_and_responses_of_a_residual_network(skip: str):
    try:
        network = models.create("resnet8", skip=skip, num_classes=10, width=4)
    except SkipwayError:
        pytest.skip("no connection for a residual network")
    responses = probe.responses(network, BATCH)
    lesions = probe.lesions(network, BATCH, "cross_entropy")
    assert len(responses.layers) >= 8
    assert len(lesions.parts) >= 1


@pytest.mark.parametrize("name", ["densenet121", "densenet-bc-16-6", "se_resnet8", "preresnet8"])
def test_lesions_and_responses_of_other_families(name: str):
    network = models.create(name, num_classes=10)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    batch = images, torch.arange(2)
    assert len(probe.responses(network, batch).layers) >= 8
    assert len(probe.lesions(network, batch, "cross_entropy").parts) >= 3
