"""Train the preference model: `python -m testtime.models.tiny.train.preference`. Resumes by itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..preference import REWARD_SCALE, PreferenceModel
from ..vocabulary import encode_batch
from .degrade import blur
from .verifier_data import score
from .verifier_loop import RUNS, VALIDATION_SEED, GridHead, parser, train
from .verifier_pool import Feed, to_float

_MARGIN = 0.3  # a ranking is taught where grades differ by at least this


def loss(model, head, pairs, images, labels, step):
    """Regression on grades, plus ranking: the right picture above a wrong one, the right prompt above a wrong one.

    Grades are those of the sharp drawing, so a degraded image is taught the mean grade of all it could have been.
    """
    prompts = [p for pair in pairs for p in pair.prompts]
    grades = torch.tensor([[score(p, things) for p in pair.prompts] for pair in pairs for things in pair.things])
    told = encode_batch([p.text for p in prompts])
    tokens = told.view(len(pairs), 1, 2, -1).expand(-1, 2, -1, -1)
    seen = model.image_stem(images)
    seen = seen.unsqueeze(1).expand(-1, 2, -1, -1).flatten(0, 1)
    reward, context = model.fuse(seen, tokens.reshape(len(seen), -1))
    fit = F.smooth_l1_loss(reward, REWARD_SCALE * grades.flatten(), beta=0.5)
    rewards, grades = reward.view(-1, 2, 2), grades.view(-1, 2, 2)  # [pair, picture, prompt]
    rank = reward.new_zeros(())
    for dim in (1, 2):
        gap = (grades.select(dim, 0) - grades.select(dim, 1)).flatten()
        lead = (rewards.select(dim, 0) - rewards.select(dim, 1)).flatten()
        clear = gap.abs() > _MARGIN
        rank = rank + (F.softplus(-3.0 * lead * gap.sign()) * clear).sum() / clear.sum().clamp(min=1)
    aux = head.loss(context[::2], labels) + head.words_loss(model.read(told), told)
    weight = 0.5 if step < 1500 else 0.2
    return fit + 0.3 * rank + weight * aux, {"fit": fit, "rank": rank, "aux": aux}


@torch.no_grad()
def evaluate(model: PreferenceModel) -> dict:
    """Accuracy of right above wrong picture on held-out pairs: sharp, blurred, and decoded by the autoencoder."""
    feed = Feed(RUNS / "pool", 500, VALIDATION_SEED)
    feed.find_decoded()
    tokens = encode_batch([pair.prompts[0].text for pair in feed.pairs])

    def accuracy(images: torch.Tensor) -> tuple[float, float, float]:
        right, wrong = (
            torch.cat([model(i, t) for i, t in zip(images[side::2].split(50), tokens.split(50), strict=True)])
            for side in (0, 1)
        )
        return float((right > wrong).float().mean()), float(right.mean()), float(wrong.mean())

    drawn = to_float(feed.images.reshape(-1, *feed.images.shape[2:]))
    views = {"drawn": drawn, "blurred_to_32": blur(drawn, 32), "blurred_to_16": blur(drawn, 16)}
    if feed.decoded is not None:
        views["decoded"] = to_float(feed.decoded[:, 0].reshape(-1, *feed.images.shape[2:]))
    metrics = {"validation_pairs": len(feed.pairs)}
    for name, images in views.items():
        share, right, wrong = accuracy(images)
        metrics[f"pair_accuracy_{name}"] = round(share, 4)
        metrics[f"mean_reward_{name}"] = {"correct": round(right, 3), "corrupted": round(wrong, 3)}
    return metrics


def main() -> None:
    """Command line."""
    args = parser("preference", seed=20).parse_args()
    torch.manual_seed(args.seed)
    model = PreferenceModel()
    train(args, model, GridHead(model.text_embedding.words.embedding_dim), loss, evaluate)


if __name__ == "__main__":
    main()
