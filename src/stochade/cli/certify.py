"""`stochade certify`: what is proven about a randomised classifier's vote, beside what attacks leave of it."""

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, PositionalMetavarFromFieldName

from stochade.cli import common
from stochade.errors import BudgetError, RecordsError, StochadeError, UsageError


@dataclass
class Certify:
    """Prove how far the majority vote of a randomised TARGET is right, example by example, and attack it at the same
    distances: the truth lies between. The same command goes on where a stopped one was.

    Examples:

    stochade certify runs/rate-coded --data digits --draws 10000 --out runs/proof

    stochade certify runs/cnn --data mnist --sigma 0.25 --examples 500 --radii 0.25 0.5 0.75

    stochade certify runs/rate-coded --norm linf --no-attack

    stochade certify runs/rate-coded --flips 0.01 0.3

    stochade certify runs/rate-coded --encodings 4 --draws 1000

    stochade certify runs/cnn --sigma 0.5 --radii 0.25 0.5 1 --sequential --draws 100000
    """

    target: Annotated[str, Positional, PositionalMetavarFromFieldName]
    """A checkpoint folder, a name of `stochade ls targets`, module:function or file.py:function."""
    out: Path | None = None
    """Folder for certificates, records and the page (runs/certify-TARGET)."""
    sigma: float | None = None
    """Add Gaussian noise of this standard deviation; default: the model's own noise (its encoder's, or its
    input's)."""
    flips: tuple[float, ...] = ()
    """Certify and attack the network behind the encoder in flips, for one code of each image: noise changes a 0 with
    the first probability and a spike with the second (or the first). Distances count flips in the whole code.
    """
    encodings: int = 1
    """Certify the mean logits of so many encodings of every image."""
    norm: str | None = None
    """Of the distances. Default l2 for Gaussian noise, l1 for rate codes (which know linf, and l2, l0 with a
    floor)."""
    draws: int = 10_000
    """Draws that bound the class's probability, per example; 100000 is usual on a GPU."""
    selection: int = 100
    """Further draws that choose the class."""
    alpha: float = 0.001
    """Probability that a certificate is wrong, per example."""
    batch: int = 500
    """Draws per forward; part of the results' identity."""
    radii: tuple[float, ...] = ()
    """Distances of the table and of the attacks; default five up to what unanimous draws would prove."""
    sequential: bool = False
    """Decide only these distances, each with as few draws as that takes; --draws is the most. 0 is the vote itself;
    where --radii leave it out, its row counts what the smallest of them proves."""
    no_attack: bool = False
    """Leave the attacks out."""
    attack_draws: int = 500
    """Draws of the vote under attack; fewer leave more of them undecided."""
    steps: int = 20
    """Steps of the attacks."""
    independent: bool = False
    """Your word that a foreign random model draws its noise anew for every row of a batch."""
    seed: int = 0
    """Everything random follows from it."""
    device: str = "cpu"
    """Where the model runs: cpu, cuda, cuda:1, mps."""
    dry_run: bool = False
    """Only say what it would cost."""
    quiet: bool = False
    """No progress."""
    images: OmitArgPrefixes[common.DataOptions] = field(default_factory=common.DataOptions)

    def run(self) -> None:
        from stochade.certify.bracket import attacked, attacks_on, bracketed, upper_bounds
        from stochade.certify.choose import smoothing_of
        from stochade.certify.confidence import check_alpha, check_draws
        from stochade.certify.run import certify_examples, grid
        from stochade.describe import provenance
        from stochade.progress import progress
        from stochade.report.certificates import write
        from stochade.targets import load_target

        check_alpha(self.alpha)
        check_draws(self.selection, self.draws, self.alpha)
        for name in ("batch", "attack_draws", "steps"):
            if getattr(self, name) < 1:
                raise BudgetError(f"--{name.replace('_', '-')} of at least 1", str(getattr(self, name)))
        if any(not 0 <= r < float("inf") for r in self.radii):
            raise UsageError("finite --radii of at least 0", str(self.radii))
        common.check_device(self.device)
        target = load_target(self.target, seed=0, device=self.device, show_progress=not self.quiet)
        whole = common.aggregated(target.model, self.encodings)
        about = target.about | ({"encodings": self.encodings} if self.encodings > 1 else {})
        if self.flips:
            model, smoothing = self._on_codes(whole)
        else:
            model, smoothing = smoothing_of(whole, self.sigma, self.norm)
        radii = sorted({0.0, *self.radii}) if self.radii else grid(smoothing, self.draws, self.alpha)
        attack, reason = not self.no_attack and (smoothing.norm != "l0" or bool(self.flips)), ""
        if not (attack or self.no_attack):
            reason = "there is no attack on the vote of a rate code in l0 yet"
        if attack and radii == [0.0]:
            asked = "was asked for" if self.radii else "can be certified with this noise and so many draws"
            attack, reason = False, f"no distance above 0 {asked}"
        if attack:
            attacks_on(smoothing, radii, self.steps)
        images, labels, facts = common.load_images(self.images, target.data, self.seed)
        if self.flips:
            images, labels = encoded(whole, images, labels, self.seed, self.device)
            facts |= {"codes": f"{self._count()} each, {tuple(images.shape[1:])}"}
        if self.dry_run:
            self._cost(model, smoothing, images, labels)
            return
        out = self.out or Path("runs") / f"certify-{common.file_name(self.target)}"
        with ExitStack() as held:  # the attacks and the page are of this run too
            found = certify_examples(
                model, images, labels, smoothing, selection=self.selection, draws=self.draws, alpha=self.alpha,
                batch=self.batch, seed=self.seed, out=out, device=self.device, independent=self.independent,
                radii=(sorted(set(self.radii)) or radii) if self.sequential else (),
                show_progress=not self.quiet, meta=about | facts, held=held,
            )  # fmt: skip
            records = None
            if attack:
                try:
                    records = attacked(
                        model, smoothing, images, labels, radii, draws=self.attack_draws, steps=self.steps,
                        seed=self.seed, out=out / "attacks", device=self.device, show_progress=not self.quiet,
                        meta=about | facts,
                    )  # fmt: skip
                except RecordsError:  # another run's attacks in this folder
                    raise
                except (StochadeError, RuntimeError) as problem:  # the certificates hold all the same
                    reason = f"{type(problem).__name__}: {(str(problem).splitlines() or ['no reason given'])[0]}"
            with progress("writing the page", shown=not self.quiet):
                again = common.repeated("certify", self)
                where = write(found, records, out / "report.html", again, provenance(), reason)
        left = {} if records is None else upper_bounds(records, self.alpha)
        above = {} if records is None else upper_bounds(records, self.alpha, undecided=True)
        print(f"{target.name} on {facts['data']}: {len(found)} examples, alpha {self.alpha:g} each, {smoothing.unit}")
        print(f"{'distance, ' + smoothing.norm:>14}  {'certified':22}  {'attacked':22}  attacked, undecided right")
        for r in radii:
            print(f"{r:14.4g}  {found.accuracy(r)!s:22}  {left.get(r, '-')!s:22}  {above.get(r, '-')}")
        spent = found.draws()
        print(
            f"abstained: {found.abstained()}; {spent.mean():.0f} draws each, {_share(spent)} at most for 90 % of them"
        )
        if above and not bracketed({r: found.accuracy(r) for r in radii}, above):
            print(
                "an attack leaves less than is certified: the draws of this model are not independent, or this "
                "is a mistake of ours"
            )
        if reason:
            print(f"not attacked (--no-attack leaves it out from the start): {reason}")
        print(f"report: {where}")

    def _count(self) -> str:
        return "one encoding" if self.encodings == 1 else f"{self.encodings} encodings"

    def _on_codes(self, model):
        """(network, flip noise) for the codes of its encoder."""
        from stochade.attacks.codes import encoder_and_network, flips_for
        from stochade.certify.flips import FlipNoise

        if len(self.flips) > 2 or self.sigma is not None or self.norm not in (None, "l0"):
            raise UsageError("--flips with one or two probabilities, without --sigma or --norm", str(self.flips))
        threat = flips_for(model)
        return encoder_and_network(model, threat)[1], FlipNoise(*self.flips, alphabet=threat.letters)

    def _cost(self, model, smoothing, images, labels) -> None:
        import time

        import torch

        from stochade.certify.procedure import first_look
        from stochade.certify.votes import Voter
        from stochade.evaluate.source import Source
        from stochade.randomness import untouched

        source = Source(images, labels, 1)
        x = source[0][0].to(self.device)
        first_look(model, x, smoothing, self.independent, self.batch)
        draws = min(self.batch, self.draws)
        with untouched(model), torch.no_grad():
            voter = Voter(model, smoothing, x, self.seed, 0, self.batch)
            voter.block("timing", 0, draws)
            start = time.perf_counter()
            voter.block("timing", 1, draws)
            each = (time.perf_counter() - start) / draws
        total = self.selection + self.draws
        print(
            f"{len(source)} examples x {total} draws, about {each * total * len(source) / 60:.1f} minutes, "
            "attacks apart"
        )


def encoded(model, images, labels, seed: int, device: str):
    """(codes [N,T,...], labels [N]): one encoding of every image, drawn in chunks of 100."""
    import torch

    from stochade.attacks.codes import encode, flips_for
    from stochade.evaluate.source import Source
    from stochade.randomness import seed_for, untouched

    source, codes, classes = Source(images, labels, 100), [], []
    with untouched(model):
        for index in range(source.chunks):
            x, y = source[index]
            codes.append(encode(model, x.to(device), flips_for(model), seed_for(seed, "realised codes", index)))
            classes.append(y)
    return torch.cat(codes), torch.cat(classes)


def _share(draws) -> int:
    import numpy as np

    return int(np.quantile(draws, 0.9, method="higher"))
