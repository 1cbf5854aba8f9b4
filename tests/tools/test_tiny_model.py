"""The small model's training code against transformers: patches, positions, forward pass, files, and that it learns."""

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from tools.tiny_model.attention import padded_attention
from tools.tiny_model.conversations import Conversation, Medium, random_conversation, single_question
from tools.tiny_model.evaluate import Evaluator, pixel_values
from tools.tiny_model.files import load_tokenizer, write_folder
from tools.tiny_model.loader import DeviceBatch, to_device
from tools.tiny_model.network import Network
from tools.tiny_model.parameters import FlatParameters, network_weights
from tools.tiny_model.samples import BatchBuilder, SampleEncoder
from tools.tiny_model.shape import ModelShape
from tools.tiny_model.tokenizer import SPECIAL_TOKENS, token_id
from tools.tiny_model.training import Trainer, TrainingSettings
from tools.tiny_model.workers import BatchWorkers
from triptych.demo.pictures import PLAIN, draw, random_scene

SHAPE = ModelShape()
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def parameters() -> FlatParameters:
    parameters = FlatParameters(network_weights(SHAPE), CPU, torch.float32, seed=3)
    # Norm weights and biases off their starting values, so that a forgotten one shows.
    parameters.master += 0.02 * torch.randn(parameters.master.shape, generator=torch.Generator().manual_seed(1))
    parameters.publish()
    return parameters


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, parameters: FlatParameters) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_folder(folder, SHAPE, load_tokenizer())
    tensors = parameters.checkpoint(parameters.master, torch.float32)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def evaluator(folder: Path) -> Evaluator:
    return Evaluator(folder, CPU)


def _quiet(conversation: Conversation) -> Conversation:
    conversation.media = [Medium(m.frames, m.style, 0.0, m.is_video) for m in conversation.media]
    return conversation


def _builder(rows: int = 1) -> BatchBuilder:
    return BatchBuilder(SampleEncoder(load_tokenizer(), SHAPE), SHAPE, rows, 512, rows * 640)


def test_a_checkpoint_loads_strictly_and_has_a_real_ones_names(folder: Path, parameters: FlatParameters) -> None:
    _, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    names = set(parameters.checkpoint(parameters.master, torch.bfloat16))
    assert {
        "visual.patch_embed.proj.weight",
        "visual.merger.mlp.2.bias",
        "model.layers.3.self_attn.k_proj.bias",
    } <= names
    assert "lm_head.weight" not in names and all(name.startswith(("visual.", "model.")) for name in names)


def test_the_checkpoint_stays_under_its_size(parameters: FlatParameters) -> None:
    tensors = parameters.checkpoint(parameters.master, torch.bfloat16)
    assert sum(tensor.nbytes for tensor in tensors.values()) < 7_900_000


def test_loading_a_checkpoint_gives_the_same_weights(parameters: FlatParameters) -> None:
    other = FlatParameters(network_weights(SHAPE), CPU, torch.float32, seed=4)
    other.load_checkpoint(parameters.checkpoint(parameters.master, torch.float32))
    assert torch.equal(other.master, parameters.master)


@pytest.mark.parametrize(("width", "height"), [(112, 112), (84, 168), (252, 168)])
def test_patches_equal_the_processors(folder: Path, width: int, height: int) -> None:
    scene = random_scene(Random(width), width, height, 3)
    expected = AutoImageProcessor.from_pretrained(folder, backend="pil")(images=[draw(scene)], return_tensors="pt")
    values, grid = pixel_values(Medium((scene,), PLAIN, 0.0, is_video=False))
    assert expected["image_grid_thw"].tolist() == [grid]
    torch.testing.assert_close(values, expected["pixel_values"], atol=1e-5, rtol=0)


def test_a_large_picture_is_scaled_into_the_trained_range(folder: Path) -> None:
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    grid = processor(images=[draw(random_scene(Random(0), 640, 480, 2))], return_tensors="pt")["image_grid_thw"]
    assert grid.tolist() == [[1, 12, 18]]


@pytest.mark.parametrize("kind", ["describe", "which_has_more", "video_direction"])
def test_the_forward_pass_equals_transformers(evaluator: Evaluator, parameters: FlatParameters, kind: str) -> None:
    rng = Random(kind)
    sample = SampleEncoder(load_tokenizer(), SHAPE).encode(_quiet(single_question(rng, kind)), Random(1))
    batch = to_device(_builder().pack(iter([sample])), CPU).tensors
    network = Network(SHAPE, parameters.tensors, padded_attention, CPU)
    values, grids = zip(*(pixel_values(medium) for medium in sample.media), strict=True)
    with torch.no_grad():
        vision = network.encode(batch, network.pixel_values(batch))
        logits = network.logits(batch, vision)
        model = evaluator._model.model
        expected = model.visual(torch.cat(values), grid_thw=torch.tensor(grids)).pooler_output
        ids = torch.tensor([sample.ids])
        hidden = model.language_model.embed_tokens(ids)
        hidden[0, sample.vision_positions] = expected
        hidden = model.language_model(
            inputs_embeds=hidden, position_ids=torch.from_numpy(sample.position_ids)[:, None]
        ).last_hidden_state
        expected_logits = evaluator._model.lm_head(hidden)[0, sample.label_positions]
    torch.testing.assert_close(vision, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits, expected_logits, atol=1e-3, rtol=0)


def test_rows_of_several_conversations_do_not_see_each_other(parameters: FlatParameters) -> None:
    encoder, rng = SampleEncoder(load_tokenizer(), SHAPE), Random(2)
    samples = [encoder.encode(_quiet(single_question(rng, kind)), rng) for kind in ("where", "describe", "video_what")]
    network = Network(SHAPE, parameters.tensors, padded_attention, CPU)
    with torch.no_grad():
        together = to_device(_builder().pack(iter(samples)), CPU).tensors
        packed = network.logits(together, network.encode(together, network.pixel_values(together)))
        alone = []
        for sample in samples:
            batch = to_device(_builder().pack(iter([sample])), CPU).tensors
            alone.append(network.logits(batch, network.encode(batch, network.pixel_values(batch))))
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", ["count", "which_has_more"])
def test_positions_equal_transformers(evaluator: Evaluator, kind: str) -> None:
    sample = SampleEncoder(load_tokenizer(), SHAPE).encode(single_question(Random(kind), kind), Random(0))
    ids = torch.tensor([sample.ids])
    grids = torch.tensor([pixel_values(medium)[1] for medium in sample.media])
    kinds = (ids == token_id("<|image_pad|>")).int()
    expected, _ = evaluator._model.model.get_rope_index(ids, mm_token_type_ids=kinds, image_grid_thw=grids)
    assert torch.equal(expected[:, 0], torch.from_numpy(sample.position_ids))


def test_padded_attention_equals_attention_of_each_segment_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 30, 2, 8, generator=generator)
    ends = torch.tensor([0, 4, 20, 30], dtype=torch.int32)
    expected = [
        torch.nn.functional.scaled_dot_product_attention(
            *(tensor[start:end].transpose(0, 1) for tensor in (query, key, value))
        ).transpose(0, 1)
        for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
    ]
    torch.testing.assert_close(padded_attention(query, key, value, ends, 16), torch.cat(expected))


@pytest.mark.parametrize("text", ["There are two blue squares: 12 + 3.", "你好 🙂 café", "a\n\n b\t c  d", ""])
def test_any_text_survives_the_tokenizer(folder: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(text) == load_tokenizer(folder).encode(text).ids


def test_special_tokens_have_qwens_names_and_the_configured_ids(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == SHAPE.vocabulary
    assert [tokenizer.convert_tokens_to_ids(name) for name in SPECIAL_TOKENS] == list(range(1002, 1024))
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_the_chat_template_gives_the_tokens_that_were_trained(folder: Path) -> None:
    conversation = single_question(Random(0), "which_has_more")
    turn = conversation.turns[0]
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in turn.parts]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": turn.question.answer}]
    text = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, tokenize=False)
    sample = SampleEncoder(load_tokenizer(), SHAPE).encode(conversation, Random(0))
    pad = token_id("<|image_pad|>")
    trained = [token for index, token in enumerate(sample.ids) if token != pad or sample.ids[index - 1] != pad]
    assert load_tokenizer().decode(trained, skip_special_tokens=False) + "\n" == text


def test_worker_processes_draw_what_the_builder_draws() -> None:
    builder = _builder(rows=2)
    workers = BatchWorkers(builder, num_workers=1, seed=7, slot_bytes=4_000_000, num_slots=2)
    try:
        drawn = workers.next()
        expected = builder.build(Random("7-0"))
        for place in drawn.places:
            array = expected[place.name]
            got = drawn.memory[place.offset : place.offset + array.nbytes].view(array.dtype).reshape(place.shape)
            np.testing.assert_array_equal(got, array)
        drawn.release()
        assert workers.next().num_samples > 0
    finally:
        workers.stop()


def test_labels_are_the_answers_with_their_end_of_turn() -> None:
    tokenizer = load_tokenizer()
    for seed in range(20):
        conversation = random_conversation(Random(seed))
        sample = SampleEncoder(tokenizer, SHAPE).encode(conversation, Random(0))
        assert [sample.ids[position + 1] for position in sample.label_positions] == sample.labels
        answers = tokenizer.decode(sample.labels, skip_special_tokens=False).split("<|im_end|>")[:-1]
        assert answers == [turn.question.answer for turn in conversation.turns]


def test_it_learns_and_goes_on_from_a_saved_state(tmp_path: Path) -> None:
    settings = TrainingSettings(minutes=0.05, warmup_steps=5, report_every_s=0.0)
    batch: DeviceBatch = to_device(_builder().build(Random(0)), CPU)
    lines: list[dict[str, object]] = []
    trainer = Trainer(SHAPE, settings, CPU)
    trainer.train(lambda: batch, lines.append)
    losses = [float(str(line["loss"])) for line in lines if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    trainer.save_state(tmp_path)
    again = Trainer(SHAPE, settings, CPU)
    again.load_state(tmp_path)
    assert torch.equal(again.parameters.master, trainer.parameters.master)
