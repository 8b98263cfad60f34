"""Transformer, ViT and GPT against torch.nn.Transformer, torchvision's ViT and Hugging Face's GPT-2: time and memory.

Same weights and inputs, inference and a training step, in turn; dropout is off, so that both compute the same.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import measure
import peers
import skipway as sw

Run = Callable[[nn.Module], Tensor]


def transformers(first: bool) -> tuple[nn.Module, nn.Module, Run, Run]:
    """An encoder-decoder of 3 + 3 layers, 256 wide, on sentences of 64 and 48, a quarter of the source padded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = nn.Transformer(256, 4, 3, 3, 1024, dropout=0.0, batch_first=True, norm_first=first)
    plan = sw.models.LayerPlan(256, 4, placement="pre-norm" if first else "post-norm")
    ours = sw.models.EncoderDecoder(plan, 3, 3, final_norm=True)
    ours.load_state_dict(theirs.state_dict())
    source, target = torch.randn(8, 64, 256), torch.randn(8, 48, 256)
    padding = torch.zeros(8, 64, dtype=torch.bool)
    padding[::2, 32:] = True
    causal = nn.Transformer.generate_square_subsequent_mask(48, dtype=torch.float32)

    def run_theirs(model: nn.Module) -> Tensor:
        return model(
            source,
            target,
            tgt_mask=causal,
            tgt_is_causal=True,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
        )

    return ours, theirs, lambda model: model(source, target, source_padding=padding), run_theirs


def vits() -> tuple[nn.Module, nn.Module, Run, Run]:
    """ViT of 6 layers, 384 wide, on images of 112 x 112 in patches of 16."""
    module = peers.torchvision().vision_transformer
    theirs = module.VisionTransformer(112, 16, 6, 6, 384, 1536, num_classes=100)
    nn.init.trunc_normal_(theirs.heads.head.weight, std=0.02)
    ours = sw.models.vit_sizes.imagenet_vit(6, 384, 6, 16, num_classes=100, image_size=112)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(8, 3, 112, 112)
    return ours, theirs, lambda model: model(images), lambda model: model(images)


def gpts() -> tuple[nn.Module, nn.Module, Run, Run]:
    """GPT of 6 layers, 384 wide, 4,096 tokens, on texts of 128."""
    import transformers

    config = transformers.GPT2Config(
        vocab_size=4096, n_positions=128, n_embd=384, n_layer=6, n_head=6, bos_token_id=1, eos_token_id=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
    )  # fmt: skip
    theirs: Any = transformers.GPT2LMHeadModel(config)
    ours = sw.models.gpt(6, 384, 6, vocabulary=4096, length=128, dropout=0.0)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(theirs.state_dict(), Path(folder) / "gpt2.bin")
        sw.models.load_weights(ours, Path(folder) / "gpt2.bin")
    tokens = torch.randint(4096, (4, 128))
    return ours, theirs, lambda model: model(tokens), lambda model: model(tokens).logits


def inference(model: nn.Module, run: Run) -> Callable[[], None]:
    def infer() -> None:
        with torch.inference_mode():
            run(model)

    return infer


def training_step(model: nn.Module, run: Run, labels: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(run(model).flatten(0, -2), labels).backward()
        optimizer.step()

    return step


def compare(ours: nn.Module, theirs: nn.Module, run_ours: Run, run_theirs: Run, rounds: int) -> dict[str, Any]:
    """Time ratio and memory of both, with the same weights and inputs."""
    ours.eval()
    theirs.eval()
    with torch.inference_mode():
        expected = run_theirs(theirs)
        difference = (run_ours(ours) - expected).abs().max().item()
    results = measure.against({"ours": inference(ours, run_ours), "theirs": inference(theirs, run_theirs)}, rounds)
    labels = torch.randint(expected.shape[-1], (expected.flatten(0, -2).shape[0],))
    ours.train()
    theirs.train()
    steps = {"ours": training_step(ours, run_ours, labels), "theirs": training_step(theirs, run_theirs, labels)}
    return {
        "shape": list(expected.shape),
        "inference": results | {"largest_difference": difference},
        "training_step": measure.against(steps, rounds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--only", choices=["post-norm", "pre-norm", "vit", "gpt"])
    options = parser.parse_args()
    torch.manual_seed(0)
    measure.keep_memory()
    pairs: dict[str, Callable[[], tuple[nn.Module, nn.Module, Run, Run]]] = {
        "post-norm": lambda: transformers(False),
        "pre-norm": lambda: transformers(True),
        "vit": vits,
        "gpt": gpts,
    }
    wanted = [options.only] if options.only else list(pairs)
    results = {name: compare(*pairs[name](), options.rounds) for name in wanted}
    if options.only:
        print(results)
    else:
        measure.record("transformer", results)


if __name__ == "__main__":
    main()
