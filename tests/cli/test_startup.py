import subprocess
import sys

import pytest

HEAVY = {
    "torch", "numpy", "lightning", "ray", "plotly", "transformers", "datasets", "kornia", "matplotlib", "torchmetrics",
    "sklearn", "pandas", "networkx", "huggingface_hub", "jaxtyping", "safetensors", "PIL", "scipy",
}  # fmt: skip


def _modules_after(code: str) -> set[str]:
    listing = "import sys; print(' '.join({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{listing}"], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("code", ["import skipway", "import skipway; dir(skipway)", "import skipway.cli"])
def test_nothing_heavy_is_imported_before_it_is_needed(code: str):
    assert not _modules_after(code) & HEAVY


def test_building_costs_torch_and_little_more():
    """`sw.models` and `sw.connect` bring in torch, and of the heavy packages nothing that torch does not."""
    torch_alone = _modules_after("import torch, torch.nn")
    ours = _modules_after("import skipway as sw; sw.models; sw.connect")
    assert (ours - torch_alone) & HEAVY <= {"jaxtyping"}


def test_declaring_a_study_does_not_load_what_training_needs():
    loaded = _modules_after("import skipway as sw; sw.Study")
    assert not loaded & (HEAVY - {"torch", "numpy", "jaxtyping"} - _modules_after("import torch"))


def test_unknown_attributes_are_named():
    import skipway

    with pytest.raises(AttributeError, match="no attribute 'Stduy'"):
        skipway.Stduy  # noqa: B018 # pyright: ignore[reportAttributeAccessIssue]
