"""UniFormerV2 against recorded outputs of the original, fusions worked out by hand, and its start as CLIP."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from flax.traverse_util import flatten_dict, unflatten_dict
from small_models import perturbed

import vidjax
from vidjax.convert import from_state_dict, layouts, recognize
from vidjax.convert.clip import HUGGING_FACE_IMAGE, OPENAI_IMAGE
from vidjax.convert.conversion import apply, invert
from vidjax.errors import UserError
from vidjax.models import example_inputs
from vidjax.models.clip import ImageTower
from vidjax.models.uniformerv2 import GlobalBlock, UniFormerV2

# Parameters, and GMACs of one clip where they are published (SYSTEMS.md, SYSTEMS-2.md); see test_published.py.
COUNTS = {
    "uniformerv2_base_16": (114_552_208, 148.105),
    "uniformerv2_large_14": (354_099_600, 665.629),
    "uniformerv2_large_14_336": (354_427_280, 6267.81),
    "uniformerv2_large_14_336_frozen": (354_426_256, 1566.984),
    "uniformerv2_base_16_ssv2": (162_992_814, 187.207),
    "uniformerv2_large_14_ssv2": (573_949_966, 858.197),
    # Counted here.
    "uniformerv2_tiny": (126_336, None),
    "uniformerv2_tiny_ssv2": (158_272, None),
}
COUNTS_WITH_FIELDS = {
    "uniformerv2_base_16 of K710": ("uniformerv2_base_16", 114_790_598, 148.105, {"num_classes": 710}),
    # A fusion other than the sequential one has a second query; and a projection of both video tokens to one.
    "parallel": ("uniformerv2_tiny", 126_336 + 48 + 2 * 48 * 48, None, {"fusion": "parallel"}),
    "hierarchical_kv": ("uniformerv2_tiny", 126_336 + 48, None, {"fusion": "hierarchical_kv"}),
    "hierarchical_q": ("uniformerv2_tiny", 126_336 + 48, None, {"fusion": "hierarchical_q"}),
}

TINY = "uniformerv2_tiny"
SIZES = {"width": 8, "depth": 3, "heads": 2, "global_layers": (0, 1, 2), "patch_size": (1, 8, 8), "image_size": 16}


@pytest.fixture(scope="module")
def parity():
    """A golden's name to its model and its recording."""

    def of(name: str) -> tuple:
        golden = recipe.load(name)
        c = golden.config
        model = UniFormerV2(
            c["D"], c["L"], c["H"], tuple(c["ret"]), local=not c["no_lmhra"], frozen=c["frozen"],
            patch_size=(2 if c["tdown"] else 1, c["P"], c["P"]), num_classes=c["classes"], num_frames=c["T"],
            image_size=c["S"],
        )  # fmt: skip
        return model, golden

    return of


@pytest.mark.parametrize("name", ["uniformerv2", "uniformerv2_lmhra", "uniformerv2_frozen"])
def test_logits_equal_the_recorded_ones(name, parity):
    model, golden = parity(name)
    variables = from_state_dict(model, golden.weights, strict=True)
    video = jnp.moveaxis(jnp.asarray(golden.inputs[0]), 1, -1)
    expected = golden.outputs["output0"]
    np.testing.assert_allclose(
        jax.jit(model.apply)(variables, video), expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )


@pytest.mark.parametrize("name", ["uniformerv2", "uniformerv2_lmhra"])
def test_the_peer_of_the_benchmark_equals_the_original(name, parity):
    torch = pytest.importorskip("torch")
    from benchmark.peers import make_peer

    model, golden = parity(name)
    peer = make_peer(name, model)[0].eval()
    peer.transformer.proj[2] = torch.nn.Linear(model.width, model.num_classes)
    peer.load_state_dict({name: torch.from_numpy(np.asarray(value)) for name, value in golden.weights.items()})
    with torch.no_grad():
        logits = peer(torch.from_numpy(golden.inputs[0])).numpy()
    np.testing.assert_allclose(logits, golden.outputs["output0"], rtol=0, atol=1e-5 * np.abs(logits).max())


def test_mmaction2s_weights_are_equivalent(parity):
    """Its names as in mmaction/models/backbones/uniformerv2.py: the last norm is the backbone's."""
    model, golden = parity("uniformerv2")
    renamed = {
        name.replace("transformer.proj.2", "cls_head.fc_cls")
        if "proj.2" in name
        else f"backbone.{name.replace('proj.0', 'norm') if 'proj.0' in name else name}": value
        for name, value in golden.weights.items()
    }
    ours, expected = (flatten_dict(from_state_dict(model, w, strict=True)) for w in (renamed, golden.weights))
    for path, value in expected.items():
        np.testing.assert_array_equal(ours[path], value)


def test_views_are_averaged_as_in_the_original():
    """Before the softmax on Something-Something, whose scripts leave out TEST.ADD_SOFTMAX."""
    cards = {name: vidjax.create_model(name).card for name in COUNTS if "tiny" not in name}
    assert {name for name, card in cards.items() if card.average == "logits"} == {
        "uniformerv2_base_16_ssv2", "uniformerv2_large_14_ssv2"
    }  # fmt: skip


# From CLIP

OF_TEXT = {  # entries of CLIP's text tower, which has the names of an image tower without their prefix
    name: np.ones((4, 4), np.float32)
    for name in ("token_embedding.weight", "positional_embedding", "transformer.resblocks.0.attn.in_proj_weight")
}


def test_starts_as_clip_on_each_frame():
    """Of larger frames than CLIP's, with local aggregations, and with patches that start at every second frame."""
    tower = ImageTower(16, 2, 2, 8, patch_size=(1, 8, 8), image_size=16)
    clip = jax.tree.map(jnp.asarray, perturbed(tower))
    clip["params"]["norm_post"] = {"scale": jnp.ones(16), "bias": jnp.zeros(16)}
    model = UniFormerV2(16, 2, 2, (0, 1), local=True, patch_size=(2, 8, 8), num_frames=4, image_size=24)
    weights = [invert(OPENAI_IMAGE, clip) | OF_TEXT, invert(HUGGING_FACE_IMAGE, clip)]
    variables = from_state_dict(model, weights[0])
    zeros = jax.tree.map(jnp.zeros_like, variables)
    filled = [apply(*recognize(model, entries), zeros)[0] for entries in weights]
    jax.tree.map(np.testing.assert_array_equal, *filled)

    @jax.jit
    def both(video):
        layers = model.apply(variables, video, method="layers")
        token = model.apply(variables, layers[:-1], (3, 3), method="video_token")
        return layers[-1], token, tower.apply(clip, video[:, ::2], method="tokens")

    ours, video_token, expected = both(jnp.asarray(recipe.floats("video", (1, 4, 24, 24, 3))))
    ours = (ours - ours.mean(-1, keepdims=True)) / np.sqrt(ours.var(-1, keepdims=True) + 1e-5)  # CLIP's last norm
    np.testing.assert_allclose(ours, expected, atol=2e-5)
    assert not video_token.any()


def test_a_global_block_starts_as_in_the_original():
    """Zeros at the ends of both parts, in the query and in biases, but not in that of the MLP's first layer."""
    block, tokens = GlobalBlock(2, 4.0, "sequential", 0.0), jnp.ones((1, 2, 5, 8))
    params = jax.jit(lambda key: block.init(key, tokens, 0.0, False, None, (2, 2))["params"])(jax.random.key(0))
    flat = flatten_dict(params, sep="/")
    zero = {path for path, leaf in flat.items() if not leaf.any()}
    biases = {path for path in flat if path.endswith("bias")}
    assert zero == biases - {"fc1/bias"} | {"query", "attention/out/kernel", "fc2/kernel"}
    assert 0.8 * 8**-0.5 < np.abs(flat["fc1/bias"]).max() < 8**-0.5
    assert np.std(flat["attention/query/kernel"]) == pytest.approx((2 * 8) ** -0.5, rel=0.3)


def test_a_visual_tower_alone_and_the_originals_weights_are_distinguished(parity):
    """The original's `extract_clip` cuts the prefix, and the last norm and projection."""
    model, golden = parity("uniformerv2")
    cut = {
        name: value
        for name, value in golden.weights.items()
        if name.split(".")[0] in ("class_embedding", "positional_embedding", "conv1", "ln_pre") or "resblocks" in name
    }
    cut["conv1.weight"] = cut["conv1.weight"][:, :, 0]
    ours, whole = (flatten_dict(from_state_dict(model, w), sep="/") for w in (cut, golden.weights))
    for path, value in whole.items():
        if path.startswith(tuple(f"params/{part}" for part in model.clone(frozen=True).frozen_parts)):
            np.testing.assert_array_equal(ours[path], value)
        elif path.endswith(("query", "balance", "fc2/kernel", "out/kernel")):
            assert not np.any(ours[path])


# Fusion


def fused_by_hand(fusion: str, layers: np.ndarray, queries: np.ndarray, projection: np.ndarray) -> np.ndarray:
    """The video token if every query takes the mean of its normalised context, and nothing else happens."""

    def mean(*tokens: np.ndarray) -> np.ndarray:
        tokens = np.concatenate([token.reshape(-1, token.shape[-1]) for token in tokens])
        return ((tokens - tokens.mean(-1, keepdims=True)) / tokens.std(-1, keepdims=True)).mean(axis=0)

    first, second, third = (mean(layer) for layer in layers)
    if fusion == "sequential":
        return queries[0] + first + second + third
    if fusion == "parallel":
        return np.concatenate([queries[0] + first, queries[1] + second, queries[2] + third]) @ projection
    if fusion == "hierarchical_kv":
        token = queries[0] + first
        token = queries[1] + mean(token, layers[1])
        return queries[2] + mean(token, layers[2])
    streams = queries[0] + first + second + third, queries[1] + second + third, queries[2] + third
    return sum(streams) / 3


@pytest.mark.parametrize("fusion", ["sequential", "parallel", "hierarchical_kv", "hierarchical_q"])
def test_fusions_equal_ones_worked_out_by_hand(fusion):
    """Values and outputs of attention are the identity, its scores are zero, as are the MLP and position encoding."""
    model = UniFormerV2(**SIZES, fusion=fusion)
    layers = 3 + 2 * recipe.floats("layers", (3, 2, 2, 5, 8))  # layers, clips, frames, class token and patches
    queries, projection = recipe.floats("queries", (3, 8)), recipe.floats("projection", (24, 8))
    shapes = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))
    flat = {}
    for path, leaf in flatten_dict(shapes, sep="/").items():
        identity = path.endswith(("attention/value/kernel", "attention/out/kernel"))
        flat[path] = np.eye(8) if identity else np.full(leaf.shape, float(path.endswith("scale")))
        if path.endswith("query"):
            flat[path] = queries[int(path.split("/")[-2].removeprefix("block_"))][None, None]
        if path.endswith("fusion_projection/kernel"):
            flat[path] = projection
    assert sum(path.endswith("query") for path in flat) == (1 if fusion == "sequential" else 3)
    variables = unflatten_dict({path: jnp.asarray(value) for path, value in flat.items()}, sep="/")
    token = model.apply(variables, tuple(map(jnp.asarray, layers)), (2, 2), method="video_token")
    assert token.shape == (2, 8)
    for clip in range(2):
        expected = fused_by_hand(fusion, layers[:, clip], queries, projection)
        np.testing.assert_allclose(token[clip], expected, rtol=1e-4, atol=1e-4)


# Properties


def test_local_blocks_reach_two_frames_and_class_tokens_only_those_that_their_patches_reached_before():
    """In a layer: patch tokens take from neighbours before attention and after it, class tokens by attention alone."""
    model = UniFormerV2(16, 1, 2, (0,), local=True, patch_size=(1, 8, 8), image_size=16)
    variables = jax.tree.map(jnp.asarray, perturbed(model))
    video = jnp.asarray(recipe.floats("video", (1, 8, 16, 16, 3)))
    layers = jax.jit(lambda video: model.apply(variables, video, method="layers")[-1])
    changed = np.abs(layers(video) - layers(video.at[0, 3].add(video[0, 2])))[0].max(axis=-1) > 1e-5  # frames, tokens
    np.testing.assert_array_equal(changed[:, 1:].any(axis=1), [False, True, True, True, True, True, False, False])
    np.testing.assert_array_equal(changed[:, 0], [False, False, True, True, True, False, False, False])


def test_rematerialisation_does_not_change_the_gradients_of_global_blocks():
    """Through the previous video token too, which a block gets besides its layer."""
    model = UniFormerV2(**SIZES | {"global_layers": (0, 1)}, fusion="hierarchical_q")
    variables = jax.tree.map(jnp.asarray, perturbed(model))
    layers = tuple(jnp.asarray(recipe.floats("layers", (2, 1, 2, 5, 8))))

    @jax.jit
    def gradients(variables, layers):
        def loss(variables, layers, model):
            return (model.apply(variables, layers, (2, 2), method="video_token") ** 2).sum()

        return [jax.grad(loss, (0, 1))(variables, layers, model.clone(remat=remat)) for remat in ("none", "blocks")]

    plain, again = gradients(variables, layers)
    assert all(layer.any() for layer in plain[1])
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6), plain, again)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fusion": "late"}, "fusion is 'late': choose one of sequential, parallel, hierarchical_kv, hierarchical_q"),
        ({"fusion": "late", "width": 8}, "fusion of model '.*' is 'late': it must be one of sequential, parallel, "),
        ({"global_layers": (1, 2, 3)}, r"global_layers is \(1, 2, 3\): .* which has 3, numbered from 0 to 2"),
        ({"global_layers": (2, 1)}, "in ascending order"),
        ({"global_layers": ()}, r"global_layers is \(\): give layers"),
        ({"global_drop_path": 1.0, "frozen": True}, "global_drop_path .* is 1.0: it must be at least 0 and below 1"),
        ({"patch_size": (2, 8, 8), "num_frames": 15}, "15 frames cannot be cut into patches of 2"),
    ],
)
def test_invalid_fields_are_rejected_in_one_line(fields, message):
    def build():  # by name, or as a module
        model = vidjax.create_model(TINY, **fields) if len(fields) > 1 else UniFormerV2(**SIZES | fields)
        jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))

    with pytest.raises(UserError, match=message) as error:
        build()
    assert "\n" not in str(error.value)


def test_only_sequential_fusion_can_be_exported_to_the_original():
    model = vidjax.create_model("uniformerv2_tiny", fusion="hierarchical_q")
    original = next(layout for layout in layouts(model) if layout.key == "original")
    with pytest.raises(UserError, match="fusion of the model is 'hierarchical_q', but OpenGVLab/UniFormerV2 uses"):
        vidjax.convert.export.entries(original, model, perturbed(model))
