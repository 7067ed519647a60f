"""Distillation: identities of the losses, students that approach their teachers."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from papers_shared.language_models import tiny_llama
from transformer_compression.distill.inside import look_inside
from transformer_compression.distill.language import distil, student_of
from transformer_compression.distill.losses import (
    attention_loss,
    deit_loss,
    distillation_loss,
    hidden_loss,
    jensen_shannon,
    kl_divergence,
    minilm_loss,
    reverse_kl,
)
from transformer_compression.distill.manifold import manifold_loss, manifold_terms
from transformer_compression.distill.text import generate_text
from transformer_compression.distill.vision import distil_vit, vit_student_of
from transformer_compression.vision.vit import build_vit


def logits(seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(6, 5, generator=draw), 2 * torch.randn(6, 5, generator=draw)


def test_divergences_vanish_for_equal_logits_and_are_positive_otherwise() -> None:
    s, t = logits()
    for divergence in (kl_divergence, reverse_kl, jensen_shannon):
        assert divergence(t, t + 3).item() == pytest.approx(0, abs=1e-6)  # shift-invariant
        assert divergence(s, t).item() > 0.01
    torch.testing.assert_close(reverse_kl(s, t), kl_divergence(t, s))
    torch.testing.assert_close(jensen_shannon(s, t, 0.3), jensen_shannon(t, s, 0.7))


def test_the_gradient_of_soft_targets_is_the_difference_of_probabilities() -> None:
    s, t = logits()
    s.requires_grad_()
    kl_divergence(s, t, 2.0).backward()
    wanted = 2 * ((s / 2).softmax(-1) - (t / 2).softmax(-1)) / len(s)
    torch.testing.assert_close(s.grad, wanted.detach())


def test_weights_of_labels_and_teacher() -> None:
    s, t = logits()
    labels = torch.arange(6) % 5
    assert distillation_loss(s, t, labels, alpha=0) == F.cross_entropy(s, labels)
    hard = distillation_loss(s, t, labels, alpha=1, hard=True)
    torch.testing.assert_close(hard, F.cross_entropy(s, t.argmax(-1)))
    both = deit_loss(s, s, t, labels)
    torch.testing.assert_close(both, (F.cross_entropy(s, labels) + hard) / 2)
    with pytest.raises(ValueError, match="0 < beta < 1"):
        jensen_shannon(s, t, 1.0)


def test_hints_of_different_widths_need_projections() -> None:
    wide, narrow = torch.ones(2, 3, 8), torch.ones(2, 3, 4)
    with pytest.raises(ValueError, match="give projections"):
        hidden_loss([narrow], [wide])
    to_wide = torch.nn.Linear(4, 8, bias=False)
    to_wide.weight.data.fill_(0.25)
    assert hidden_loss([narrow], [wide], [to_wide]).item() == 0
    with pytest.raises(ValueError, match="are mapped"):
        hidden_loss([wide], [])


def test_manifold_terms_do_not_see_rotations_and_align_extra_tokens() -> None:
    draw = torch.Generator().manual_seed(0)
    t = torch.randn(3, 8, 6, generator=draw)
    turn, _ = torch.linalg.qr(torch.randn(6, 6, generator=draw))
    s = torch.cat([torch.randn(3, 1, 6, generator=draw), t @ turn], 1)  # a class token in front
    assert manifold_loss([s], [t], generator=draw).item() == pytest.approx(0, abs=1e-10)
    one = manifold_terms(t + 1, t, patches=4, generator=torch.Generator().manual_seed(1))
    two = manifold_terms(t + 1, t, patches=4, generator=torch.Generator().manual_seed(1))
    assert one.random == two.random > 0
    with pytest.raises(ValueError, match="differ in patches"):
        manifold_terms(t[:, :5], t, generator=None)


def test_inside_a_model_scores_and_values_are_what_it_attends_with() -> None:
    model = tiny_llama()
    x = torch.randint(0, 97, (2, 9), generator=torch.Generator().manual_seed(0))
    before = model(x).logits
    name = model.config._attn_implementation
    with look_inside(model) as inside:
        torch.testing.assert_close(model(x).logits, before)
    assert model.config._attn_implementation == name
    assert [s.shape for s in inside.scores] == [(2, 4, 9, 9)] * 3
    assert inside.values[0].shape == (2, 2, 9, 16)
    future = torch.ones(9, 9, dtype=torch.bool).triu(1)
    assert torch.isinf(inside.scores[0][..., future]).all()
    assert torch.isfinite(inside.scores[0][..., ~future]).all()
    same = minilm_loss(*(inside.scores[-1],) * 2, *(inside.values[-1],) * 2)
    assert same.item() == pytest.approx(0, abs=1e-6)
    assert attention_loss(inside.scores, inside.scores).item() == 0
    with pytest.raises(ValueError, match="head by head"):
        minilm_loss(inside.scores[0][:, :2], inside.scores[0], *(inside.values[0],) * 2)


def test_a_student_is_every_third_layer_and_loads_with_stock_classes(tmp_path: Any) -> None:
    from transformers import AutoModelForCausalLM

    teacher = tiny_llama(layers=6)
    student = student_of(teacher)
    assert student.config.num_hidden_layers == 2
    weight = "self_attn.q_proj.weight"
    torch.testing.assert_close(
        student.state_dict()[f"model.layers.1.{weight}"],
        teacher.state_dict()[f"model.layers.3.{weight}"],
    )
    student.save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.num_hidden_layers == 2
    with pytest.raises(ValueError, match="expected some of 0 to 5"):
        student_of(teacher, [7])


@pytest.mark.parametrize("loss", ["ce", "logits", "reverse", "jsd", "hidden", "minilm"])
def test_a_student_comes_nearer_to_its_teacher(loss: Any) -> None:
    teacher = tiny_llama(layers=4)
    for p in teacher.parameters():
        p.data *= 3  # random weights of the usual size say nearly nothing
    text = generate_text(teacher, count=8, length=20, seed=0)
    student = student_of(teacher, every=2)
    report = distil(student, teacher, text, loss=loss, steps=12, lr=3e-3, alpha=1 - (loss == "ce"))
    assert report.losses[-1] < report.losses[0]
    assert report.tokens == 12 * 8 * 20
    assert all(p.grad is None for p in teacher.parameters())


def test_widths_may_differ_for_hints() -> None:
    teacher, student = tiny_llama(), tiny_llama(hidden=32, intermediate=64)
    text = generate_text(teacher, count=2, length=12, seed=0)
    report = distil(student, teacher, text, loss="hidden", steps=4, lr=3e-3, alpha=1)
    assert report.losses[-1] < report.losses[0]


def test_generated_text_depends_on_the_seed_and_starts_greedily() -> None:
    model = tiny_llama()
    texts = [
        torch.cat(generate_text(model, count=5, length=12, seed=s, batch=2)) for s in (0, 0, 1)
    ]
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])
    with torch.no_grad():
        best = model(texts[0][:, :4]).logits.argmax(-1)
    assert torch.equal(texts[0][:, 1:5], best)
    prompt = torch.tensor([[5, 6, 7]])
    told = torch.cat(generate_text(model, count=2, length=8, seed=0, prompts=prompt))
    assert told[:, :3].tolist() == [[5, 6, 7]] * 2
    with pytest.raises(ValueError, match="leave nothing"):
        generate_text(model, count=1, length=3, seed=0, prompts=prompt)


def test_what_cannot_be_distilled_is_refused() -> None:
    model = tiny_llama()
    with pytest.raises(ValueError, match="give batches"):
        distil(model, model, [])
    with pytest.raises(ValueError, match="expected one of"):
        distil(model, model, [torch.zeros(1, 4, dtype=torch.long)], loss="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="different vocabularies"):
        distil(model, tiny_llama(vocabulary=50), [torch.zeros(1, 4, dtype=torch.long)])


# --- vision --------------------------------------------------------------------------------------

SMALL = {"embed_dim": 32, "depth": 4, "num_heads": 4, "image_size": 16}


def batch(step: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(6, 3, 16, 16, generator=draw), torch.arange(6) % 10


@pytest.mark.parametrize("loss", ["ce", "logits", "hard", "manifold"])
def test_a_vision_student_learns(loss: Any) -> None:
    torch.manual_seed(0)
    teacher = build_vit(**SMALL).eval()
    student = vit_student_of(teacher, [0, 2])
    report = distil_vit(student, teacher, batch, loss=loss, steps=6, lr=2e-3)
    assert report.losses[-1] < report.losses[0]
    assert len(student.blocks) == 2  # type: ignore[arg-type]
    assert not student.blocks[0]._forward_hooks  # type: ignore[index]


def test_deits_token_learns_from_the_teacher_and_both_answer() -> None:
    from timm.models.deit import VisionTransformerDistilled

    torch.manual_seed(0)
    teacher = build_vit(**SMALL).eval()
    student = VisionTransformerDistilled(
        img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=4, num_classes=10
    )
    report = distil_vit(student, teacher, batch, loss="token", steps=4, lr=2e-3)
    assert report.losses[-1] < report.losses[0]
    assert student(batch(0)[0]).shape == (6, 10)
    with pytest.raises(ValueError, match="distillation token"):
        distil_vit(vit_student_of(teacher, [0]), teacher, batch, loss="token", steps=1)


@pytest.mark.skipif(not os.environ.get("PAPERS_MIRROR"), reason="PAPERS_MIRROR is not set")
def test_the_convolutional_teacher_knows_cifar() -> None:
    from papers_shared.data.cifar10 import load_cifar10
    from transformer_compression.distill.adapters import for_resnet
    from transformer_compression.distill.resnet import load_resnet20
    from transformer_compression.vision.data import normalise

    data = load_cifar10("test")
    with torch.inference_mode():
        made = load_resnet20()(for_resnet(normalise(data.images[:200])))
    assert (made.argmax(1) == data.labels[:200]).float().mean() > 0.85
