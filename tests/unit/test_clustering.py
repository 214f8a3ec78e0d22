"""Clusters of images: reductions, k-means, and who stands for a cluster."""

import pytest
import torch
from sklearn.cluster import KMeans

from testtime.samplers.clustering import k_means, reduce_tokens, representatives


def uniforms(n, seed=0):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blobs(centres, each=6, spread=0.05, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.tensor(centres, dtype=torch.float32)
    return torch.cat([c + spread * torch.randn(each, len(c), generator=generator) for c in centres])


def test_well_separated_clusters_are_found_and_agree_with_scikit_learn():
    points = blobs([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0], [3.0, 3.0]])
    labels, centres = k_means(points, 4, uniforms(4))
    theirs = KMeans(4, n_init=10, random_state=0).fit(points.numpy())
    assert all(len(row.unique()) == 1 for row in labels.view(4, 6))
    ours = ((points - centres[labels]) ** 2).sum()
    assert float(ours) == pytest.approx(theirs.inertia_, rel=1e-5)


def test_one_of_each_cluster_is_kept_and_it_is_the_nearest():
    points = blobs([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]], each=5)
    points[7] = points[[5, 6, 8, 9]].mean(0)
    chosen, empty = representatives(points, 3, uniforms(3))
    assert empty == 0 and [int(c) // 5 for c in chosen] == [0, 1, 2] and 7 in chosen


def test_as_many_clusters_as_images_keeps_all():
    points = blobs([[0.0], [1.0], [2.0]], each=2)
    chosen, empty = representatives(points, 6, uniforms(6))
    assert chosen.tolist() == [0, 1, 2, 3, 4, 5] and empty == 0


def test_identical_features_keep_the_first_ones():
    chosen, empty = representatives(torch.ones(5, 3), 3, uniforms(3))
    assert chosen.tolist() == [0, 1, 2] and empty == 2


def test_too_few_different_images_are_filled_by_the_farthest():
    points = torch.tensor([[0.0], [0.0], [0.0], [5.0], [5.0]])
    chosen, empty = representatives(points, 3, uniforms(3))
    assert empty == 1 and len(set(chosen.tolist())) == 3 and {points[i].item() for i in chosen} == {0.0, 5.0}


def test_more_clusters_than_images_is_refused():
    with pytest.raises(ValueError, match="4 clusters of 3 images"):
        k_means(torch.rand(3, 2), 4, uniforms(4))


def test_result_is_a_function_of_points_and_uniforms():
    points = torch.rand(20, 4, generator=torch.Generator().manual_seed(1))
    one, other = (representatives(points, 5, uniforms(5, seed))[0] for seed in (3, 3))
    assert torch.equal(one, other)


@pytest.mark.parametrize(("how", "shape"), [("pca", 9), ("pca_exact", 9), ("pca_all", 9), ("pool", 5)])
def test_reductions_have_their_shapes(how, shape):
    assert reduce_tokens(torch.randn(4, 9, 5), how).shape == (4, shape)


def test_component_explains_the_most_variance():
    torch.manual_seed(0)
    tokens = torch.randn(3, 50, 4) * torch.tensor([5.0, 1.0, 1.0, 1.0])
    projected = reduce_tokens(tokens, "pca")
    first = tokens[..., 0] - tokens[..., 0].mean(1, keepdim=True)
    for a, b in zip(projected, first, strict=True):
        assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) > 0.99


def test_near_twins_lie_together_when_the_sign_is_fixed():
    """Left to chance, the sign of the component throws half of near-identical images to opposite ends."""
    torch.manual_seed(0)
    image = torch.randn(64, 12) * torch.linspace(3, 0.5, 12)
    twins = image + 0.01 * torch.randn(8, 64, 12)
    twins[::2] = twins[::2].flip(0)
    fixed = reduce_tokens(twins, "pca")
    assert torch.cdist(fixed, fixed).max() < 0.1 * fixed.norm(dim=1).mean()


def test_single_tokens_are_taken_as_they_are():
    tokens = torch.randn(4, 1, 7)
    assert torch.equal(reduce_tokens(tokens, "pca"), tokens[:, 0])
    with pytest.raises(ValueError, match="pca, pca_exact, pca_all, pool"):
        reduce_tokens(tokens, "umap")
