"""Crops and mirror images of training images: against numpy, their frequencies, and that a kill changes nothing."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, chisquare

from small_training import run, same, small, squares, told
from stochade.cli.main import _parse
from stochade.errors import BudgetError, CheckpointError, ImagesError, UsageError
from stochade.randomness import fingerprint
from stochade.recipes.networks import parts_of
from stochade.recipes.schema import Training
from stochade.train import Augment, parse_augment


def numbered(n=6, c=2, h=4, w=5):
    """Images whose pixels are all different and above zero."""
    return torch.arange(1, n * c * h * w + 1, dtype=torch.float32).reshape(n, c, h, w)


def ways(image, crop, flip):
    """All images that may come of one, by (down, across, mirrored), with numpy."""
    h, w = image.shape[1:]
    found = {}
    for mirrored in (False, True) if flip else (False,):
        padded = np.pad(image, ((0, 0), (crop, crop), (crop, crop)))
        for down in range(2 * crop + 1):
            for across in range(2 * crop + 1):
                part = padded[:, down : down + h, across : across + w]
                found[down, across, mirrored] = part[:, :, ::-1] if mirrored else part
    return found


def which(image, told, crop, flip):
    return next(key for key, way in ways(image, crop, flip).items() if np.array_equal(way, told))


def test_every_image_is_a_shifted_or_mirrored_one_and_all_are_equally_likely():
    """Chi-square over the 18 ways of a crop of 1 and a flip, exact binomial for the flip; 1e-6 each."""
    image = numbered(1, 1, 3, 3)
    x = image.expand(3600, -1, -1, -1)
    made = Augment(1, True)(x, torch.arange(3600), seed=0, epoch=0).numpy()
    names = [which(image[0].numpy(), one, 1, True) for one in made]
    counts = [names.count(key) for key in ways(image[0].numpy(), 1, True)]
    assert len(counts) == 18
    assert chisquare(counts).pvalue > 1e-6
    flips = Augment(0, True)(x, torch.arange(3600), seed=1, epoch=0)
    mirrored = int((flips == image.flip(3)).flatten(1).all(1).sum())
    assert int((flips == image).flatten(1).all(1).sum()) == 3600 - mirrored
    assert binomtest(mirrored, 3600, 0.5).pvalue > 1e-6


def test_channels_move_together_and_crops_alone_never_mirror():
    x = numbered()
    made = Augment(2, False)(x, torch.arange(6), seed=3, epoch=1)
    for image, one in zip(x.numpy(), made.numpy(), strict=True):
        assert not which(image, one, 2, False)[2]
    assert not torch.equal(made, x)


def test_an_image_has_its_own_fate_by_its_number_whatever_stands_beside_it():
    x, index, augment = numbered(), torch.tensor([7, 3, 9, 0, 5, 1]), Augment()
    before = fingerprint()
    made = augment(x, index, seed=5, epoch=2)
    assert fingerprint() == before
    order = torch.tensor([4, 0, 2])
    assert torch.equal(augment(x[order], index[order], seed=5, epoch=2), made[order])
    for other in ({"seed": 6, "epoch": 2}, {"seed": 5, "epoch": 3}):
        assert not torch.equal(augment(x, index, **other), made)
    assert len({tuple(which(a, b, 4, True)) for a, b in zip(x.numpy(), made.numpy(), strict=True)}) > 1


def test_training_sees_augmented_images_and_validation_does_not():
    seen = {True: [], False: []}
    model = small("mlp")
    model.register_forward_pre_hook(lambda m, inputs: seen[m.training].append(inputs[0].detach().clone()))
    run(model, epochs=2, seed=4, augment=Augment(1))
    from stochade.randomness import seed_for

    images = squares()
    for epoch in (0, 1):
        order = np.random.default_rng(seed_for(4, "order", epoch)).permutation(60)
        expected = Augment(1)(torch.as_tensor(images.pixels[order]), torch.as_tensor(order), seed=4, epoch=epoch)
        assert torch.equal(torch.cat(seen[True][4 * epoch : 4 * epoch + 4]), expected)
    validation = torch.as_tensor(squares(40, 1).pixels)
    assert all(torch.equal(x, validation) for x in seen[False][1:])


def test_a_run_with_a_break_ends_with_the_same_bits(tmp_path):
    whole, broken = small(), small()
    history = run(whole, epochs=3, augment=Augment(1))
    run(broken, epochs=1, augment=Augment(1), out=tmp_path)
    assert told(run(broken, epochs=3, augment=Augment(1), out=tmp_path)) == told(history)
    assert same(whole.state_dict(), broken.state_dict())
    assert not same(whole.state_dict(), _trained().state_dict())
    for other in (None, Augment(2), Augment(1, False)):
        with pytest.raises(CheckpointError, match="augment"):
            run(small(), epochs=3, augment=other, out=tmp_path)


def _trained():
    model = small()
    run(model, epochs=3)
    return model


def test_a_run_that_knew_of_no_augmentation_goes_on_without(tmp_path):
    run(small(), epochs=1, out=tmp_path)
    text = (tmp_path / "state.safetensors").read_bytes()
    assert b"augment" not in text
    assert run(small(), epochs=2, out=tmp_path, augment=None).resumed_from == 1


def test_words_become_what_they_say():
    for text, expected in (
        ("crop flip", Augment()), ("flip crop", Augment()), ("crop=2", Augment(2, False)), ("flip", Augment(0, True)),
        ("", None),
    ):  # fmt: skip
        assert parse_augment(text) == expected
    command = _parse(["train", "mlp", "--out", "x", "--augment", "crop=1 flip"])
    assert command._settings(None)["augment"] == Augment(1)
    assert parts_of(Training(augment="flip"))["augment"] == Augment(0)
    assert parts_of(Training())["augment"] is None


@pytest.mark.parametrize("text", ["corp", "crop crop", "flip=1", "crop=0", "crop=-1", "crop=a", "crop,flip"])
def test_wrong_words_are_named(text):
    with pytest.raises((UsageError, BudgetError)):
        parse_augment(text)
    with pytest.raises(ValueError, match="crop"):
        Training(augment=text)


def test_what_makes_no_sense_is_refused_before_training():
    for crop in (-1, 1.5, True):
        with pytest.raises(BudgetError, match="crop"):
            Augment(crop)
    with pytest.raises(UsageError, match="neither"):
        Augment(0, False)
    with pytest.raises(ImagesError, match="number"):
        Augment()(torch.zeros(2, 3), torch.arange(2), seed=0, epoch=0)
    with pytest.raises(ImagesError, match="number"):
        Augment()(numbered(), torch.arange(2), seed=0, epoch=0)
    for wrong in (lambda x, index, **_: x[:, :, 1:], lambda x, index, **_: None):
        with pytest.raises(ImagesError, match="augmented"):
            run(small(), augment=wrong, schedule=_never)


def _never(epoch):
    pytest.fail("trained")
