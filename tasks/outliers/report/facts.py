"""Key numbers and facts of a run as text."""

from __future__ import annotations

from tasks.outliers.report.ablation import in_words
from tasks.outliers.report.data import Dimension, ModelReport, OutliersData
from tasks.outliers.report.figures.common import VARIANT_NAMES
from tasks.outliers.report.sentences import place
from tasks.report import numbers as fmt


def model_tiles(model: ModelReport) -> list[tuple[str, str]]:
    """A model's key numbers: (value, what it counts)."""
    counts, row, facts, needed = model.counts, model.row, model.facts, plain(model.criteria.relative_threshold)
    tiles = [(fmt.count(counts.systematic), f"of {fmt.count(facts.d_model)} dimensions are systematic outliers")]
    if counts.pairs:
        recurring = f"of them in a sequence on average; {fmt.count(counts.in_all)} in every one"
        tiles += [
            (fmt.mean(counts.mean_per_sequence), recurring),
            (fmt.percent(counts.mean_layer_share), "of the watched points affected, on average"),
            (fmt.percent(counts.mean_position_share), "of the positions affected, on average"),
        ]
    tiles += [
        (fmt.magnitude(row.largest_magnitude), f"largest magnitude in {place(model.site)}"),
        (fmt.count(counts.relative_systematic), f"systematic against the token’s rms (at least {needed} times it)"),
        (fmt.count(row.massive), "dimensions with massive activations"),
    ]
    zeroed, _ = model.ablation.main if model.ablation else (None, None)
    if zeroed:
        random = f"; random ones ×{fmt.NBSP}{fmt.ratio(row.random_perplexity_ratio)}"
        label = f"perplexity with {in_words(zeroed)} at zero{random if row.random_perplexity_ratio else ''}"
        tiles.append((f"×{fmt.NBSP}{fmt.ratio(zeroed.ratio)}", label))
    tiles.append((fmt.count(facts.tokens), f"tokens read in {fmt.some(facts.sequences, 'sequence', 'sequences')}"))
    return tiles


def sweep_tiles(data: OutliersData) -> list[tuple[str, str]]:
    """A sweep's key numbers: (value, what it counts)."""
    rows = [m.row for m in data.models]
    failed = f", {len(data.failures)} failed" if data.failures else ""
    having = sum(r.systematic > 0 for r in rows)
    share = [r.systematic / r.d_model for r in rows]
    ratios = [r.perplexity_ratio for r in rows if r.systematic and r.perplexity_ratio is not None]
    sizes = [r.parameters for r in rows if r.parameters]
    largest = [r.largest_magnitude for r in rows if r.largest_magnitude is not None]
    tiles = [
        (fmt.count(len(rows)), f"models examined{failed}"),
        (fmt.count(having), "have systematic outlier dimensions"),
    ]
    if share:
        few, many = fmt.percent(min(share), 1), fmt.percent(max(share), 1)
        tiles.append((many, f"of a model’s dimensions are systematic at most, {few} at least"))
    if largest:
        tiles.append((fmt.magnitude(max(largest)), "largest magnitude of all"))
    if ratios:
        least = f", {fmt.ratio(min(ratios))} at least" if len(ratios) > 1 else ""
        label = f"perplexity at most with the systematic dimensions at zero{least}"
        tiles.append((f"×{fmt.NBSP}{fmt.ratio(max(ratios))}", label))
    if sizes:
        tiles.append(
            (fmt.scaled(max(sizes)), f"parameters of the largest model, {fmt.scaled(min(sizes))} of the smallest")
        )
    return tiles


def model_facts(model: ModelReport) -> list[tuple[str, str]]:
    """What was run, as (name, value)."""
    f, c = model.facts, model.criteria
    active = f", {fmt.scaled(f.active)} active per token" if f.active and f.active != f.parameters else ""
    about = ", ".join(
        part
        for part in (f.model_type, f.architecture or "", f"{f.n_layers} layers", f"width {fmt.count(f.d_model)}")
        if part
    )
    documents = f" from {fmt.some(f.documents, 'document', 'documents')}" if f.documents is not None else ""
    rows = [
        ("Model", f"{f.model} ({about})"),
        ("Parameters", f"{fmt.scaled(f.parameters)}{active}"),
        ("Experts", f.experts or ""),
        ("Precision", f.dtype + (f", weights quantized: {f.quantization}" if f.quantization else "")),
        ("Fingerprint", f.fingerprint),
        ("Text", f.text),
        (
            "Sequences",
            f"{fmt.count(f.sequences)} of up to {fmt.count(f.longest)} tokens, {fmt.count(f.tokens)} in all{documents};"
            f" {'each begins' if f.bos else 'none begins'} with BOS; {f.batch_size} in a forward pass",
        ),
        ("Watched", "; ".join(f"{place(s)}: {fmt.some(len(s.points), 'point', 'points')}" for s in model.sites)),
        (
            "Criteria",
            f"|x| ≥ {plain(c.threshold)} at ≥ {fmt.percent(c.layer_share)} of the points and"
            f" ≥ {fmt.percent(c.position_share)} of the positions, {VARIANT_NAMES[model.variant]};"
            f" scale-free: ≥ {plain(c.relative_threshold)} × rms; massive: > {plain(c.massive_magnitude)}"
            f" and ≥ {plain(c.massive_ratio)} × median",
        ),
    ]
    return [(name, value) for name, value in rows if value]


def sign(d: Dimension) -> str:
    """'+ 98 %' or '− 100 %': the sign that most outliers have, and how many of them."""
    share = d.positive_share
    if share is None:
        return fmt.MISSING
    return f"{'+' if share >= 0.5 else '−'}{fmt.NBSP}{fmt.percent(max(share, 1 - share))}"


def plain(threshold: float) -> str:
    """A threshold as it was given: '6', '0.25', '1,000'."""
    return f"{threshold:,g}"
