"""Infinity inside ComfyUI: loading, encoding, sampling, searching, and what bad inputs say."""

from __future__ import annotations

import json

import pytest
import torch

from tests.unit.infinity_reference import published_shapes, published_vae_shapes
from testtime.models.infinity.config import InfinityConfig
from testtime.models.infinity.vae import VaeConfig

pytestmark = pytest.mark.host

SMALL = InfinityConfig(2, 32, 2, bits=8, text_width=64, text_length=64, pool_heads=4, hidden=64)
SMALL_VAE = VaeConfig(8, base=32, multipliers=(1, 1, 1, 1, 1), blocks=1)


def drawn(shapes, seed, std):
    generator = torch.Generator().manual_seed(seed)
    state = {name: std * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: torch.zeros_like(x) if name.endswith("zero_k_bias") else x for name, x in state.items()}


def flan(folder):
    """A small random Flan-T5 as transformers saves it, in shards, with its decoder."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(3)
    config = T5Config(
        vocab_size=32128, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).eval()
    model.save_pretrained(folder, max_shard_size="5MB")
    assert (folder / "model.safetensors.index.json").is_file(), "the shards are part of the test"
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of a small model under the published keys, in ComfyUI's model folders."""
    import folder_paths

    root = tmp_path_factory.mktemp("models")
    for folder in ("diffusion_models", "vae", "text_encoders"):
        (root / folder).mkdir()
        folder_paths.add_model_folder_path(folder, str(root / folder))
    torch.save(drawn(published_shapes(SMALL, 2), 1, 0.15), root / "diffusion_models" / "infinity_small.pth")
    torch.save({"vae": drawn(published_vae_shapes(SMALL_VAE), 2, 0.15)}, root / "vae" / "infinity_vae_small.pth")
    folder_paths.filename_list_cache.clear()
    return root, flan(root / "text_encoders" / "flan-t5-small")


@pytest.fixture(scope="module")
def loaded(files):
    """(INFINITY, CLIP, VAE) as the node gives them."""
    from testtime.nodes.infinity_nodes import LoadInfinityNode

    with torch.inference_mode():
        return LoadInfinityNode.execute("infinity_small.pth", "infinity_vae_small.pth", "flan-t5-small", "default").args


def encode(clip, text, **options):
    from testtime.nodes.infinity_nodes import InfinityTextEncodeNode

    with torch.inference_mode():
        return InfinityTextEncodeNode.execute(clip, text, **options).args[0]


def sample(loaded, positive, **changes):
    from testtime.nodes.infinity_sampler import InfinitySamplerNode

    settings = {"seed": 5, "cfg": 2.0, "tau": 1.0, "top_p": 0.97, "aspect_ratio": "1:1 (square)", "pixels": "0.06M"}
    with torch.inference_mode():
        result = InfinitySamplerNode.execute(loaded[0], positive, **{**settings, "batch_size": 1, **changes})
    return result.args[0]["samples"]


def search(loaded, positive, method, **changes):
    from testtime.nodes.infinity_sampler import InfinitySearchNode
    from testtime.verifiers.registry import create

    settings = {"seed": 5, "cfg": 2.0, "tau": 1.0, "top_p": 0.97, "aspect_ratio": "1:1 (square)", "pixels": "0.06M"}
    settings |= {"batch_size": 1, "verifier": create("jpeg_incompressibility"), "vae": loaded[2], "prompt": "a cat"}
    with torch.inference_mode():
        return InfinitySearchNode.execute(loaded[0], positive, search=method, **{**settings, **changes}).args


def test_the_loader_offers_what_is_there(files):
    from testtime.nodes.infinity_nodes import AUTOENCODER, TEXT, TRANSFORMER, LoadInfinityNode

    assert "infinity_small.pth" in TRANSFORMER.choices()
    assert AUTOENCODER.default(AUTOENCODER.choices()) in AUTOENCODER.choices()
    assert "flan-t5-small" in TEXT.choices()
    choices = {"transformer": "infinity_small.pth", "vae": "infinity_vae_small.pth", "text_encoder": "flan-t5-small"}
    assert LoadInfinityNode.validate_inputs(**choices) is True


@pytest.mark.parametrize(
    ("name", "file", "repository"),
    [
        ("transformer", "infinity_2b_reg.pth", "FoundationVision/Infinity"),
        ("vae", "infinity_vae_d32reg.pth", "FoundationVision/Infinity"),
        ("text_encoder", "flan-t5-xl", "google/flan-t5-xl"),
    ],
)
def test_a_missing_file_says_what_to_download_and_where_to_put_it(files, name, file, repository):
    from testtime.nodes.infinity_nodes import LoadInfinityNode

    message = LoadInfinityNode.validate_inputs(**{name: "nothing.pth"})
    for part in (name, "nothing.pth", file, repository, str(files[0])):
        assert part in message


def test_text_features_are_those_of_transformers(files, loaded):
    """Same tokens, same encoder: what Infinity was trained with."""
    from transformers import T5TokenizerFast

    positive = encode(loaded[1], "a photo of a red cat")
    features = positive[0][0]
    from testtime.nodes.host.infinity_host import FlanTokenizer

    ids = [pair[0] for pair in FlanTokenizer().tokenize_with_weights("a photo of a red cat")[0]]
    assert ids[-1] == 1 and 0 not in ids
    assert isinstance(FlanTokenizer().tokenizer, T5TokenizerFast)
    with torch.no_grad():
        expected = files[1].encoder(torch.tensor([ids])).last_hidden_state
    assert features.shape == expected.shape
    assert torch.allclose(features, expected, atol=1e-5)


def test_long_prompts_are_cut_and_keep_their_end(loaded):
    from testtime.nodes.host.infinity_host import TOKENS, FlanTokenizer

    tokens = FlanTokenizer().tokenize_with_weights("cat " * 2000)[0]
    assert len(tokens) == TOKENS and tokens[-1][0] == 1


def test_faces_are_improved_where_people_are_meant(loaded):
    from testtime.nodes.infinity_nodes import FACES, with_faces

    assert with_faces("A woman, smiling").endswith(FACES)
    assert with_faces("a seasoned mango") == "a seasoned mango"
    plain, improved = encode(loaded[1], "a man"), encode(loaded[1], "a man", improve_faces=True)
    assert improved[0][0].shape[1] > plain[0][0].shape[1]


def test_samples_are_the_librarys(files, loaded):
    import nodes
    from testtime.models.infinity.loading import load_transformer, load_vae
    from testtime.models.infinity.process import ScalewiseProcess
    from testtime.models.infinity.sampling import ScaleSampling
    from testtime.models.infinity.scale_state import Decoder
    from testtime.models.infinity.schedules import schedule_for
    from testtime.models.infinity.text import TextFeatures
    from testtime.samplers.processes.streams import Streams

    positive = encode(loaded[1], "two red stars")
    latents = sample(loaded, positive, batch_size=2)
    network = load_transformer(files[0] / "diffusion_models" / "infinity_small.pth")
    vae = load_vae(files[0] / "vae" / "infinity_vae_small.pth")
    features = positive[0][0].clone()
    prompt = network.prompt(TextFeatures(features, torch.ones(features.shape[:2], dtype=torch.bool)))
    process = ScalewiseProcess(
        network, prompt, schedule_for(1.0, "0.06M"), Decoder(vae.decode), 2, Streams(5),
        sampling=ScaleSampling(cfg=2.0, tau=1.0, top_p=0.97),
    )  # fmt: skip
    state = process.start(1)
    for _ in range(process.steps):
        state, _ = process.advance(state)
    assert latents.shape == (2, 8, 16, 16)
    assert torch.allclose(latents, state.x, atol=1e-5)
    with torch.inference_mode():
        images = nodes.VAEDecode().decode(loaded[2], {"samples": latents})[0]
    assert images.shape == (2, 256, 256, 3)
    assert torch.allclose(images, vae.decode(state.x), atol=1e-4)
    assert (images[0] - images[1]).abs().max() > 0.01


def test_portraits_negative_prompts_and_greedy_sampling(loaded):
    positive, negative = encode(loaded[1], "a tower"), encode(loaded[1], "blurred, ugly")
    tall = sample(loaded, positive, aspect_ratio="1:2 (portrait)")
    assert tall.shape == (1, 8, 22, 11)
    assert not torch.equal(sample(loaded, positive, negative=negative), sample(loaded, positive))
    assert torch.equal(sample(loaded, positive, top_k=1, seed=1), sample(loaded, positive, top_k=1, seed=2))
    assert not torch.equal(sample(loaded, positive, seed=1), sample(loaded, positive, seed=2))


def test_images_are_coded_and_decoded(loaded):
    import nodes

    image = torch.rand(1, 256, 256, 3, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        latent = nodes.VAEEncode().encode(loaded[2], image)[0]["samples"]
        assert latent.shape == (1, 8, 16, 16)
        # Seven scales, each adds +-1 / sqrt(8) (interpolated): no entry can be larger than their sum.
        assert 0 < latent.abs().max() <= 7 / 8**0.5 + 1e-4
        with pytest.raises(ValueError, match="no schedule ends on 20 x 20 tokens"):
            nodes.VAEEncode().encode(loaded[2], torch.rand(1, 320, 320, 3))


def test_tts_var_searches_and_its_winner_is_the_best_finalist(loaded):
    import nodes
    from testtime.nodes.tts_var_node import TTSVARNode
    from testtime.verifiers.registry import create

    method = TTSVARNode.execute(2, "value", 10.0, "pca").args[0]
    best, finalists, scores, trace = search(loaded, encode(loaded[1], "a cat"), method)
    assert best["samples"].shape == (1, 8, 16, 16) and len(finalists["samples"]) == 2
    assert [len(step.particles) for step in trace.records] == [16, 16, 16, 12, 12, 8, 4, 2]
    with torch.inference_mode():
        images = nodes.VAEDecode().decode(loaded[2], finalists)[0]
    rescored = create("jpeg_incompressibility").score(images, ["a cat"] * 2)
    assert scores.values == pytest.approx(rescored.tolist(), abs=1e-6)
    assert scores.values == sorted(scores.values, reverse=True)
    assert torch.equal(best["samples"], finalists["samples"][:1])


@pytest.mark.parametrize("node", ["BestOfNNode", "SMCNode", "FKSteeringNode"])
def test_other_searches_run_on_scales(loaded, node):
    from testtime.nodes import method_nodes

    cls = getattr(method_nodes, node)
    defaults = {entry.id: entry.default for entry in cls.define_schema().inputs if not entry.optional}
    method = cls.execute(**{**defaults, "particles": 3}).args[0]
    best, finalists, scores, _ = search(loaded, encode(loaded[1], "a cat"), method, batch_size=2)
    assert best["samples"].shape == (2, 8, 16, 16) and len(scores.values) == len(finalists["samples"])


def test_a_search_reads_its_prompts_once(loaded, monkeypatch):
    """With a budget in seconds, too, for which the process is timed first."""
    from testtime.nodes.host import scalewise_host
    from testtime.samplers.budget import Budget
    from testtime.samplers.methods import BestOfN
    from testtime.samplers.plan import Plan

    made, build, network = [], scalewise_host.ScalewiseProcess, loaded[0].network
    prompt = type(network).prompt
    monkeypatch.setattr(scalewise_host, "ScalewiseProcess", lambda *a, **k: made.append(build(*a, **k)) or made[-1])
    read = []
    monkeypatch.setattr(type(network), "prompt", lambda *a, **k: read.append(1) or prompt(*a, **k))
    for plan in (Plan(BestOfN(2)), Plan(BestOfN(2), budget=Budget(seconds=10.0))):
        made.clear()
        read.clear()
        search(loaded, encode(loaded[1], "a cat"), plan)
        assert len(made) == len(read) == 1


def test_one_particle_of_a_search_is_the_plain_sample(loaded):
    from testtime.samplers.methods import BestOfN

    positive = encode(loaded[1], "a cat")
    best = search(loaded, positive, BestOfN(particles=1))[0]["samples"]
    assert torch.equal(best, sample(loaded, positive))


def test_budgets_end_a_search_with_the_best_so_far(loaded):
    from testtime.samplers.methods import BestOfN

    best, _, _, trace = search(loaded, encode(loaded[1], "a cat"), BestOfN(particles=2), max_nfe=12)
    assert best["samples"].shape == (1, 8, 16, 16)
    assert trace.meta["warnings"] is not None and trace.records[-1].nfe <= 12


def test_cancel_keeps_the_best_so_far(loaded, monkeypatch):
    import comfy.model_management as management

    from testtime.nodes.host.results import store
    from testtime.samplers.methods import BestOfN

    calls = []

    def cancel_later():
        calls.append(1)
        if len(calls) == 6:
            raise management.InterruptProcessingException()

    positive = encode(loaded[1], "a cat")  # newer hosts can be interrupted in every layer of a text encoder, too
    monkeypatch.setattr(management, "throw_exception_if_processing_interrupted", cancel_later)
    with pytest.raises(management.InterruptProcessingException):
        search(loaded, positive, BestOfN(particles=2))
    assert store.latest("interrupted").best.shape == (1, 8, 16, 16)


def test_inputs_that_do_not_fit_are_named(loaded):
    from testtime.nodes.family_nodes import LoadShapesWorldNode
    from testtime.samplers.methods import RBF, BestOfN
    from testtime.samplers.protocols import SearchError

    positive = encode(loaded[1], "a cat")
    with torch.inference_mode():
        _, other_clip, other_vae, *_ = LoadShapesWorldNode.execute("flow").args
    with pytest.raises(SearchError, match="positive has 192 channels: this model reads 64"):
        sample(loaded, encode(other_clip, "a cat"))
    with pytest.raises(SearchError, match="vae decodes latents of 4 channels"):
        search(loaded, positive, BestOfN(particles=2), vae=other_vae)
    with pytest.raises(SearchError, match="positive has 2 entries"):
        sample(loaded, [*positive, *positive])
    with pytest.raises(SearchError, match="cfg layers are"):
        sample(loaded, positive, cfg_layer=-7)
    with pytest.raises(SearchError, match="next-scale model"):
        search(loaded, positive, RBF(50, 1, 4))
    with pytest.raises(SearchError, match="prompt is empty"):
        search(loaded, positive, BestOfN(particles=2), prompt=" ")


@pytest.mark.parametrize(
    ("widgets", "message"),
    [
        (("8, x", "", ""), "batch_schedule is '8, x'"),
        (("", "2", ""), "batch_schedule is empty"),
        (("4, 8, 8", "1", ""), "rises from 4 to 8"),
        (("8, 6, 6", "", ""), "where nothing selects"),
    ],
)
def test_plans_are_checked_when_queued(widgets, message):
    from testtime.nodes.tts_var_node import TTSVARNode

    assert message in TTSVARNode.validate_inputs(*widgets)


def test_a_transformer_of_another_autoencoder_is_refused(files):
    import folder_paths

    from testtime.models.infinity.loading import CheckpointError
    from testtime.nodes.infinity_nodes import LoadInfinityNode

    other = VaeConfig(4, base=32, multipliers=(1, 1, 1, 1, 1), blocks=1)
    torch.save(drawn(published_vae_shapes(other), 2, 0.1), files[0] / "vae" / "other.pth")
    folder_paths.filename_list_cache.clear()
    with pytest.raises(CheckpointError, match="has codes of 4 bits"):
        LoadInfinityNode.execute("infinity_small.pth", "other.pth", "flan-t5-small", "default")
    (files[0] / "text_encoders" / "odd.json").write_text(json.dumps({}))
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        LoadInfinityNode.execute("infinity_small.pth", "infinity_vae_small.pth", "odd.json", "default")


@pytest.mark.parametrize("kind", ["eps", "flux"])
def test_tts_var_runs_on_diffusion_models(setup, search_ksampler, kind):
    """A descending population with clusters, where steps take the place of scales."""
    from testtime.samplers.clustering import PixelFeatures
    from testtime.samplers.methods import TTSVAR

    given = setup(kind, batch=2)
    out = search_ksampler(given, TTSVAR(1, extractor=PixelFeatures(), features="pool"), cfg=1.0, steps=6)
    assert out.best["samples"].shape[0] == 2 and out.scores.group == [0, 1]
    # 8, 8, 6, 4, 2 and 1 particles per image make the six moves; the chosen ones are predicted before they are judged.
    assert [len(record.particles) for record in out.trace.records] == [16, 16, 16, 12, 8, 4, 2]


@pytest.fixture
def verifiers_folder(tmp_path):
    """An empty folder in the place of models/verifiers."""
    import folder_paths

    from testtime.nodes.model_folders import FOLDER

    before = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = ([str(tmp_path)], before[1])
    folder_paths.filename_list_cache.clear()
    yield tmp_path
    folder_paths.folder_names_and_paths[FOLDER] = before
    folder_paths.filename_list_cache.clear()


def test_clusters_by_dinov2_features(loaded, verifiers_folder):
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    from testtime.nodes.extractor_nodes import LoadFeaturesNode
    from testtime.nodes.tts_var_node import TTSVARNode

    torch.manual_seed(0)
    config = Dinov2WithRegistersConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=56, patch_size=14, num_register_tokens=2
    )
    Dinov2WithRegistersModel(config).save_pretrained(verifiers_folder / "dino")
    assert LoadFeaturesNode.validate_inputs("dino") is True
    extractor = LoadFeaturesNode.execute("dino").args[0]
    assert extractor.tokens(torch.rand(2, 64, 64, 3)).shape == (2, 16, 32)
    method = TTSVARNode.execute(1, "value", 10.0, "pca", extractor=extractor).args[0]
    best = search(loaded, encode(loaded[1], "a cat"), method)[0]["samples"]
    assert best.shape == (1, 8, 16, 16)


def test_clusters_by_inception_features(verifiers_folder):
    from torchvision.models import inception_v3

    from testtime.nodes.extractor_nodes import LoadFeaturesNode
    from testtime.verifiers.image_image.features import INCEPTION_FILE

    message = LoadFeaturesNode.validate_inputs(INCEPTION_FILE)
    assert INCEPTION_FILE in message and "download.pytorch.org" in message and str(verifiers_folder) in message
    torch.manual_seed(0)
    torch.save(inception_v3(weights=None, init_weights=False).state_dict(), verifiers_folder / INCEPTION_FILE)
    extractor = LoadFeaturesNode.execute(INCEPTION_FILE).args[0]
    assert extractor.tokens(torch.rand(1, 64, 64, 3)).shape == (1, 1, 2048)
