"""LoRA and DoRA against goldens and peft itself: outputs of its files in our models, and of ours in its models."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import recipe
from small_models import perturbed

from vidjax.convert import from_state_dict, load_adapter, peft
from vidjax.layers import low_rank
from vidjax.models.language import LanguageModel
from vidjax.models.timesformer import TimeSformer
from vidjax.models.videomae import VideoMAE
from vidjax.models.vit import ViT

PREFIX = "base_model.model."


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_equals_the_golden(name):
    golden = recipe.load(name)
    c = golden.config
    model = ViT(c["D"], c["L"], c["H"], 4.0, (1, c["P"], c["P"]), image_size=c["S"], epsilon=1e-12)
    weights = {entry.removeprefix(PREFIX).replace(".default", ""): value for entry, value in golden.weights.items()}
    few = {entry: value for entry, value in weights.items() if ".lora_" in entry}
    few = {entry.replace("magnitude_vector.weight", "magnitude_vector"): value for entry, value in few.items()}
    base = {entry.replace(".base_layer", ""): value for entry, value in weights.items() if ".lora_" not in entry}
    variables = from_state_dict(model, base, strict=True)
    config = {"lora_alpha": c["alpha"], "r": c["r"], "use_dora": name == "dora"}
    factors, scale = peft.convert(model, config, few)
    assert scale == 2.0 and len(factors) == 2 * 2 * (3 if name == "dora" else 2)
    merged = peft.merged(variables, factors, scale)
    apply = jax.jit(lambda variables, video: model.apply(variables, video, method="tokens")[:, 0])
    video = jnp.asarray(golden.inputs[0]).transpose(0, 2, 3, 1)[:, None]
    for given, output in ((merged, "output0"), (merged, "output1"), (variables, "output3")):
        np.testing.assert_allclose(apply(given, video), golden.outputs[output], rtol=0, atol=2e-5)
    kernel = merged["params"]["transformer"]["block_0"]["attention"]["query"]["kernel"]
    np.testing.assert_allclose(kernel.T, golden.outputs["output2"], rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def video_mae():
    """A small VideoMAE in transformers and in ours, with the same variables."""
    transformers = peers.transformers()
    config = transformers.VideoMAEConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, num_frames=4,
        num_labels=3, layer_norm_eps=1e-6,
    )  # fmt: skip
    theirs = transformers.VideoMAEForVideoClassification(config).eval()
    ours = VideoMAE(32, 2, 2, 2.0, num_classes=3, num_frames=4, image_size=32)
    variables = from_state_dict(ours, peers.perturb(theirs), strict=True)
    return theirs, ours, variables


VIDEO = recipe.floats("video", (2, 4, 3, 32, 32))


def logits(model) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(VIDEO)).logits.numpy()


def ours_of(model, variables) -> np.ndarray:
    return np.asarray(jax.jit(model.apply)(variables, jnp.asarray(VIDEO.transpose(0, 1, 3, 4, 2))))


SETTINGS = {
    "lora": {"modules_to_save": ["classifier"]},
    "rank-stabilised": {"use_rslora": True, "rank_pattern": {"value": 3}, "alpha_pattern": {"0.attention.*query": 5}},
    "dora": {"use_dora": True, "bias": "lora_only"},
    "convolution": {"target_modules": ["projection", "output.dense"]},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_file_of_peft_gives_its_outputs(name, video_mae, tmp_path):
    theirs, ours, variables = video_mae
    library = peers.peft()
    settings = {"r": 2, "lora_alpha": 6, "target_modules": ["query", "value", "intermediate.dense"]} | SETTINGS[name]
    adapted = library.get_peft_model(copy.deepcopy(theirs), library.LoraConfig(**settings)).eval()
    base = logits(adapted)
    peers.perturb(adapted)  # the base and the adapter: the names differ from those of the base alone
    adapted.save_pretrained(tmp_path)
    names = {entry: value.numpy() for entry, value in adapted.state_dict().items()}
    names = {entry.removeprefix("base_model.model.").replace(".base_layer", ""): v for entry, v in names.items()}
    variables = from_state_dict(ours, {e: v for e, v in names.items() if "lora_" not in e and ".modules_to" not in e})
    merged = load_adapter(tmp_path, ours, variables)
    np.testing.assert_allclose(ours_of(ours, merged), logits(adapted), rtol=0, atol=2e-5)
    assert np.abs(logits(adapted) - base).max() > 0.1 < np.abs(ours_of(ours, merged) - ours_of(ours, variables)).max()


def few_of(model, modules: list[str], rank: int, magnitude: bool = False) -> dict[str, np.ndarray]:
    """Perturbed factors of these layers."""
    shapes = perturbed(model)["params"]
    kernels = {}
    for module in modules:
        leaf = shapes
        for part in [*module.split("/"), "kernel"]:
            leaf = leaf[part]
        kernels[f"{module}/kernel"] = jnp.asarray(leaf)
    started = low_rank.start(kernels, rank, jax.random.key(0), magnitude)
    return {path: np.asarray(leaf) + 0.3 * recipe.floats(path, leaf.shape) for path, leaf in started.items()}


@pytest.mark.parametrize("magnitude", [False, True])
def test_peft_reads_our_files(magnitude, video_mae, tmp_path):
    theirs, ours, variables = video_mae
    library = peers.peft()
    modules = ["transformer/block_1/attention/value", "transformer/block_0/mlp/fc2", "patch_embedding"]
    few = few_of(ours, modules[: 2 if magnitude else 3], 2, magnitude)
    few |= {f"head/{name}": recipe.floats(name, shape) for name, shape in (("kernel", (32, 3)), ("bias", (3,)))}
    peft.export_adapter(tmp_path / "a", ours, few, rank=2, alpha=3.0, stabilized=True)
    adapted = library.PeftModel.from_pretrained(copy.deepcopy(theirs), str(tmp_path / "a"))
    merged = peft.merged(variables, few, 3 / 2**0.5)
    np.testing.assert_allclose(ours_of(ours, merged), logits(adapted), rtol=0, atol=2e-5)
    again = load_adapter(tmp_path / "a", ours, variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), again, merged)


def test_layers_that_a_publisher_has_in_one_are_written_as_one_of_higher_rank(tmp_path):
    transformers, library = peers.transformers(), peers.peft()
    import torch

    config = transformers.GPT2Config(vocab_size=20, n_positions=8, n_embd=16, n_layer=1, n_head=2)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    ours = LanguageModel(20, 8, 16, 1, 2)
    peers.perturb(theirs)
    variables = from_state_dict(ours, {entry: value.numpy() for entry, value in theirs.state_dict().items()})
    few = few_of(ours, [f"transformer/block_0/{name}" for name in ("attention/query", "attention/value", "mlp/fc1")], 2)
    peft.export_adapter(tmp_path / "a", ours, few, rank=2, alpha=4.0)
    merged = peft.merged(variables, few, 2.0)
    adapted, ids = library.PeftModel.from_pretrained(theirs, str(tmp_path / "a")), np.arange(8)[None]
    assert adapted.base_model.model.transformer.h[0].attn.c_attn.lora_A["default"].weight.shape == (4, 16)
    with torch.no_grad():
        expected = adapted(torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(ours.apply(merged, jnp.asarray(ids)), expected, rtol=0, atol=2e-5)
    again = load_adapter(tmp_path / "a", ours, variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), again, merged)


def test_dora_of_a_part_of_a_publishers_layer_is_refused(tmp_path):
    model = TimeSformer(16, 1, 2, image_size=16, num_frames=2)
    few = few_of(model, ["transformer/block_0/time/attention/query"], 1, magnitude=True)
    with pytest.raises(ValueError, match=r"peft's DoRA needs all 3 parts of .*qkv: adapt them too, or use LoRA"):
        peft.export_adapter(tmp_path / "a", model, few, rank=1, alpha=1.0)


def test_an_adapter_of_another_model_or_method_is_refused(tmp_path):
    model = ViT(16, 1, 2, 2.0, (1, 8, 8), image_size=16)
    peft.export_adapter(tmp_path / "a", model, few_of(model, ["transformer/block_0/mlp/fc1"], 1), rank=1, alpha=1.0)
    other = LanguageModel(20, 8, 16, 1, 2)
    with pytest.raises(ValueError, match="no known layout of LanguageModel has the adapter's layers, such as"):
        load_adapter(tmp_path / "a", other, {"params": {}})
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(config.read_text().replace("LORA", "IA3"))
    with pytest.raises(ValueError, match="has an adapter of the type IA3: only LORA can be merged"):
        load_adapter(tmp_path / "a", other, {"params": {}})
