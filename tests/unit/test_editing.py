"""Sources, preservation and the judge of edits: the written numbers, and what is wrong is named."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from testtime.bench.small_vlm import llava
from testtime.chat.conversation import NotUnderstood, Turn
from testtime.rewriters.base import EDITED, ChatRewriter
from testtime.samplers.methods import SVDD, BestOfN
from testtime.samplers.protocols import RewriteRequest, ScoreContext, SearchError
from testtime.samplers.sources import Sources, check_sources, fitted, sources_of
from testtime.verifiers import registry
from testtime.verifiers.base import VerifierError, WrappedVerifier
from testtime.verifiers.ensemble import EnsembleVerifier, Voice
from testtime.verifiers.image_image.preservation import PreservationVerifier
from testtime.verifiers.vlm import edit
from testtime.verifiers.vlm.edit import EditJudgeVerifier, load_edit_judge, of_chances, of_grades, read_grades
from testtime.verifiers.vlm.endpoint import endpoint_judge

from . import oracles
from .searches import run
from .test_verifiers_judge import no_pauses, says, serve  # noqa: F401 - fixtures


def smooth(seed: int, side: int = 512) -> torch.Tensor:
    """``[side, side, 3]``: a picture of soft blobs."""
    torch.manual_seed(seed)
    small = torch.rand(1, 3, 12, 12)
    return F.interpolate(small, (side, side), mode="bicubic")[0].clamp(0, 1).movedim(0, -1)


SOURCE = smooth(0)


def preserved(image, mask=None, share=0.3, source=SOURCE):
    return float(PreservationVerifier(Sources((source,), mask), share).score(image[None])[0])


def with_square(part: float) -> torch.Tensor:
    """The source with a square of another picture that covers ``part`` of it."""
    image, side = SOURCE.clone(), round(512 * math.sqrt(part))
    image[40 : 40 + side, 40 : 40 + side] = smooth(9)[40 : 40 + side, 40 : 40 + side].flip(-1)
    return image[:512, :512]


class TestPreservation:
    def test_identical_is_one_and_noise_hardly_counts(self):
        assert preserved(SOURCE) == 1.0
        noisy = (SOURCE + 0.03 * torch.randn(SOURCE.shape, generator=torch.manual_seed(1))).clamp(0, 1)
        assert 0.95 < preserved(noisy) < 0.99  # .972 is written

    def test_an_edit_of_a_quarter_passes_and_of_a_half_does_not(self):
        ten, quarter, half = (preserved(with_square(part)) for part in (0.1, 0.25, 0.5))
        assert ten > 0.995 and quarter > 0.97 and half < 0.75
        assert preserved(with_square(0.25), share=0.0) < quarter - 0.2  # .373 against .992 is written

    def test_what_changes_everywhere_is_seen(self):
        brighter = (SOURCE * 0.9 + 0.05, SOURCE * 0.9)
        assert preserved(brighter[0], source=brighter[1]) == pytest.approx(math.exp(-0.5), abs=0.01)  # .607 exactly
        shifted = [preserved(SOURCE.roll(pixels, 1)) for pixels in (2, 8)]
        assert shifted[0] > shifted[1] and preserved(SOURCE.flip(1)) < 0.3 > preserved(smooth(5))

    def test_a_mask_frees_what_it_covers_and_nothing_else(self):
        image, mask, side = with_square(0.5), torch.zeros(512, 512), round(512 * math.sqrt(0.5))
        mask[40 : 40 + side, 40 : 40 + side] = 1.0
        assert preserved(image, mask) > 0.995
        elsewhere = image.clone()
        elsewhere[mask == 0] += 0.05
        assert preserved(elsewhere, mask) == pytest.approx(math.exp(-0.5), abs=0.03)  # .611 is written
        with pytest.raises(SearchError, match="source_mask covers the whole picture"):
            preserved(image, torch.ones(512, 512))

    def test_it_has_a_gradient_that_points_back_to_the_source(self):
        image = (SOURCE * 0.9 + 0.02).requires_grad_()
        PreservationVerifier(Sources((SOURCE,)), 0.0).score(image[None]).sum().backward()
        step = (image + 0.02 * image.grad.sign()).detach()
        assert preserved(step, share=0.0) > preserved(image.detach(), share=0.0)

    def test_share_is_checked(self):
        with pytest.raises(VerifierError, match=r"share is 1.0: it must lie in 0 .* below 1"):
            PreservationVerifier(share=1.0)


class TestSources:
    def test_another_size_is_resized_and_other_proportions_get_bars(self):
        assert torch.equal(fitted(SOURCE, 512, 512), SOURCE)
        half = F.avg_pool2d(SOURCE.movedim(-1, 0)[None], 2)[0].movedim(0, -1)
        torch.testing.assert_close(fitted(SOURCE, 256, 256), half)
        wide = fitted(SOURCE, 256, 512)
        assert (wide[:, :128] == 0.5).all() and (wide[:, 384:] == 0.5).all()
        torch.testing.assert_close(wide[:, 128:384], half)

    @pytest.mark.parametrize(
        ("images", "mask", "groups", "words"),
        [
            (torch.rand(2, 8, 8, 3), None, 3, "source has 2 images for a batch of 3: give one for all of them"),
            (torch.rand(8, 8, 3), None, 1, r"source has shape \[8, 8, 3\]: it must be an IMAGE"),
            (torch.rand(1, 8, 8, 3), torch.eye(16)[:, :8], 1, "source_mask is 8 x 16 .* belongs to another image"),
            (torch.rand(1, 8, 8, 3), torch.eye(8).expand(2, 8, 8), 1, "source_mask has 2 masks for a batch of 1"),
        ],
    )
    def test_what_cannot_be(self, images, mask, groups, words):
        with pytest.raises(SearchError, match=words):
            sources_of(images, groups, mask)

    def test_rows_and_even_masks(self):
        images = torch.rand(2, 8, 8, 4)
        found = sources_of(images, 4, torch.zeros(1, 64, 64))
        assert [torch.equal(found[g].first, images[g % 2, ..., :3]) for g in range(4)] == [True] * 4
        assert found[0].mask is None  # Load Image without a mask gives zeros of 64 x 64
        assert sources_of(images, 2, torch.eye(16))[1].mask.shape == (16, 16)

    def test_a_judge_without_a_source_is_refused_before_the_first_pass_whatever_it_is_inside_of(self):
        judge = PreservationVerifier()
        for verifier in (judge, WrappedVerifier(judge), EnsembleVerifier([Voice(judge)])):
            with pytest.raises(SearchError, match="'preservation' compares with the image that is edited and there is"):
                check_sources([verifier], ())
        check_sources([PreservationVerifier(Sources((SOURCE,))), None], ())


class Seen(PreservationVerifier):
    """Remembers the sources that it was given; its score is the first coordinate."""

    def __init__(self):
        super().__init__(name="seen")
        self.found = []

    def score(self, images, prompts="", context=None):
        self.found += [(int(g), float(context.source(row).first.mean())) for row, g in enumerate(context.group)]
        return images.flatten(1)[:, 0]


class TestInASearch:
    SOURCES = tuple(Sources((torch.full((4, 4, 3), 0.25 * g),)) for g in range(2))

    @pytest.mark.parametrize("search", [BestOfN(3), SVDD(2)], ids=lambda search: search.name)
    def test_every_image_is_judged_against_its_own_source(self, search):
        seen = Seen()
        run(search, seen, oracles.keyed(groups=2), sources=self.SOURCES, held_out=Seen())
        assert seen.found and all(mean == pytest.approx(0.25 * group) for group, mean in seen.found)

    def test_no_source_costs_no_pass(self):
        process = oracles.keyed(groups=2)
        with pytest.raises(SearchError, match="connect `source` of the search or of the verifier"):
            run(BestOfN(2), Seen(), process)
        with pytest.raises(SearchError, match="2 sources for 1 images"):
            run(BestOfN(2), Seen(), oracles.keyed(groups=1), sources=self.SOURCES)


class Answers:
    """An asker that answers by a table, in the order of the questions; remembers what it was shown."""

    name, module = "scripted", None

    def __init__(self, *said):
        self.said, self.asked = list(said), []

    def ask_of(self, asked, rubric):
        self.asked += asked
        return [self.said.pop(0) for _ in asked]


def chances(*values):
    return [{"yes": value} for value in values]


def judge_of(*said, **options):
    return EditJudgeVerifier(Answers(*said), source=Sources((SOURCE[:32, :32],)), **options)


RESULT = SOURCE[None, 32:64, 32:64]


class TestEditJudge:
    def test_the_written_number(self):
        values = judge_of(*chances(0.9, 0.5, 0.8)).judge(RESULT, "make it blue")
        assert float(values.score) == pytest.approx(0.7114, abs=1e-4)
        assert [round(float(part), 2) for part in values.members.values()] == [0.9, 0.5, 0.8]

    def test_doing_nothing_earns_less_than_any_edit_that_is_rather_there(self):
        nothing = of_chances(*(torch.tensor([x]) for x in (0.05, 1.0, 1.0)))
        done = of_chances(*(torch.tensor([x]) for x in (0.51, 0.3, 0.6)))
        assert nothing < done

    def test_who_is_shown_what(self):
        judge = judge_of(*chances(1, 1, 1))
        judge.score(RESULT, "make it blue")
        done, kept, natural = judge.asker.asked
        assert all("make it blue" in one.text and len(one.pictures) == 2 for one in (done, kept))
        assert len(natural.pictures) == 1 and "make it blue" not in natural.text
        assert torch.equal(done.pictures[0], (SOURCE[:32, :32] * 255).round().byte())
        assert torch.equal(natural.pictures[0], (RESULT[0] * 255).round().byte())

    def test_references_are_shown_between_source_and_result(self):
        sources = Sources((SOURCE[:32, :32], SOURCE[:16, :16]))
        judge = EditJudgeVerifier(Answers(*chances(1, 1, 1)), source=sources)
        judge.score(RESULT, "x")
        assert [tuple(picture.shape[:2]) for picture in judge.asker.asked[0].pictures] == [(32, 32), (16, 16), (32, 32)]

    def test_instruction_of_the_node_of_the_search_and_the_prompt(self):
        context = ScoreContext(torch.zeros(1, dtype=torch.int64), instruction="paint it")
        for options, told, wanted in (
            ({}, None, "the prompt"),
            ({}, context, "paint it"),
            ({"instruction": "swap it"}, context, "swap it"),
        ):
            judge = judge_of(*chances(1, 1, 1), **options)
            judge.score(RESULT, "the prompt", told)
            assert wanted in judge.asker.asked[0].text
        with pytest.raises(VerifierError, match="is empty"):
            judge_of().score(RESULT, " ")
        assert not judge_of(instruction="swap it").needs_prompt and judge_of().needs_prompt

    def test_known_cases_are_not_asked_again_but_another_source_is(self):
        judge = EditJudgeVerifier(Answers(*chances(1, 1, 1), *chances(0.5, 0.5, 0.5)))
        group = torch.zeros(1, dtype=torch.int64)
        first, other = (ScoreContext(group, sources=(Sources((smooth(k, 32),)),)) for k in (1, 2))
        assert [float(judge.score(RESULT, "x", told)) for told in (first, first, other, first)] == [1, 1, 0.5, 1]

    def test_grades(self):
        judge = judge_of({"done": 20.0, "preserved": 15.0}, {"natural": 25.0, "clean": 10.0}, manner="grades")
        values = judge.judge(RESULT, "x")
        assert float(values.score) == pytest.approx(4.89898, abs=1e-5)
        assert judge.default_scale == (6.0, 2.0) and len(values.members) == 4
        graded = [torch.tensor([x]) for x in (20.0, 15.0, 25.0, 10.0)]
        assert float(of_grades(*graded)) == pytest.approx(math.sqrt(24), abs=1e-6)

    @pytest.mark.parametrize("grade", [30, -1, "20", True, None])
    def test_a_grade_out_of_range_is_none(self, grade):
        with pytest.raises(NotUnderstood, match="'done'"):
            read_grades(json.dumps({"done": grade, "preserved": 15}), ("done", "preserved"))

    def test_prose_gets_no_score_and_is_counted(self, caplog):
        judge = judge_of("begins with neither yes nor no", *chances(1, 1))
        assert torch.isnan(judge.score(RESULT, "x")).all() and judge.failed == 1
        assert "got no answer about 1 of 1 images: begins with neither" in caplog.text
        with pytest.raises(VerifierError, match="got no answer about 1 of 1"):
            judge_of("prose", *chances(1, 1), on_failure="error").score(RESULT, "x")
        neutral = judge_of("prose", *chances(1, 1), on_failure="neutral")
        assert float(neutral.score(RESULT, "x")) == pytest.approx(0.25 ** (1 / 3))

    def test_bad_settings_are_named(self):
        with pytest.raises(VerifierError, match="manner is 'stars': choose one of yes_no, grades"):
            judge_of(manner="stars")
        with pytest.raises(VerifierError, match="on_failure is 'ignore'"):
            judge_of(on_failure="ignore")

    def test_behind_an_endpoint_the_source_comes_first(self, serve):  # noqa: F811
        server = serve(says("Yes", {"Yes": 0.6, "No": 0.2}))
        asker = endpoint_judge(server.url, "m").asker
        judge = EditJudgeVerifier(asker, source=Sources((torch.zeros(16, 16, 3),)))
        assert float(judge.score(torch.ones(1, 16, 16, 3), "x")) == pytest.approx(0.75)
        counts = [len(body["messages"][0]["content"]) - 1 for _, _, body in server.requests]
        assert counts == [2, 2, 1]

    def test_a_model_on_this_machine_sees_both_in_order(self, tmp_path):
        pytest.importorskip("transformers")
        llava(tmp_path)
        judge = load_edit_judge(tmp_path, longest=28, source=Sources((SOURCE[:28, :28],)))
        asker = judge.asker
        both = judge.judge(RESULT[:, :28, :28], "red").members
        turns = [
            Turn("user", edit.QUESTIONS[0].format(instruction="red"), last, (first,))
            for first, last in ((picture(SOURCE[:28, :28]), picture(RESULT[0, :28, :28])),)
        ]
        said = asker.module.next_token([turns])
        yes, no = (said[:, asker.module.answer_token(word)] for word in ("Yes", "No"))
        assert float(both[f"{judge.name}.done"]) == pytest.approx(float(torch.sigmoid(yes - no)), abs=1e-6)
        other = EditJudgeVerifier(asker, source=Sources((SOURCE[100:128, :28],)))
        assert float(other.judge(RESULT[:, :28, :28], "red").members[f"{other.name}.done"]) != float(
            both[f"{judge.name}.done"]
        )
        assert registry.create("edit_judge", folder=tmp_path).needs_source

    def test_in_a_search_of_the_included_world_it_chooses_by_its_answers(self):
        class Bright(Answers):
            def ask_of(self, asked, rubric):
                return chances(*(float(one.pictures[-1].float().mean()) / 255 for one in asked))

        judge = EditJudgeVerifier(Bright(), source=Sources((SOURCE[:32, :32],)), instruction="brighter")
        scores = judge.score(torch.stack([torch.full((32, 32, 3), level) for level in (0.2, 0.8)]), "")
        assert scores.tolist() == pytest.approx([0.2, 0.8], abs=0.01)


def picture(image):
    return Image.fromarray((image * 255).round().byte().numpy())


def test_a_rewriter_is_shown_the_source_before_the_preview():
    class Rewriter(ChatRewriter):
        def complete(self, turns, seed, poll):
            self.turns = turns
            raise NotUnderstood("enough")

    rewriter = Rewriter("r")
    request = RewriteRequest(torch.ones(8, 8, 3), "make it red", 2, sources=(torch.zeros(8, 8, 3),))
    with pytest.raises(NotUnderstood):
        rewriter.rewrite([request])
    asked = rewriter.turns[-1]
    assert asked.text.startswith(EDITED) and [image.getpixel((3, 3))[0] for image in asked.images] == [0, 255]
    with pytest.raises(NotUnderstood):
        rewriter.rewrite([RewriteRequest(torch.ones(8, 8, 3), "make it red", 2)])
    assert EDITED not in rewriter.turns[-1].text and len(rewriter.turns[-1].images) == 1
