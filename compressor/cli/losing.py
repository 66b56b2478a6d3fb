"""Options of what runs through models to see what they lost, and of the gates on that."""

from __future__ import annotations

import click

from compressor.cli import options

tokens: options.Decorator = options.chain(
    click.option("--text", metavar="FILE", help="Run this text through both models (needs the extra calibrate)."),
    click.option("--tokens", metavar="FILE.npy", help="Run these token ids: whole numbers [samples, length]."),
)
recorded: options.Decorator = options.chain(
    click.option("--inputs", metavar="FILE.npy", help="Run these inputs through both networks, in NumPy."),
    click.option("--labels", metavar="FILE.npy", help="The class of each input, for accuracy [--inputs]."),
    click.option(
        "--network",
        metavar="NAME|FILE",
        help="What the network is, where tensors do not tell: lenet300, lenet5, lenet5-relu, or a TOML [--inputs].",
    ),
    click.option("--divide", type=options.Finite(1e-30), help="Divide the inputs by this, such as 255 [--inputs]."),
)
sampling: options.Decorator = options.chain(
    click.option("--samples", type=click.IntRange(1, 10**9), help="Windows of the text [32], by the seed."),
    click.option("--length", type=click.IntRange(2, 10**7), help="Tokens of a window [512]."),
)
seed = click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Which windows are taken: 0 by default.")
gates: options.Decorator = options.chain(
    click.option("--max-kld", type=options.Finite(0), help="Mean KL divergence of the outputs, in nats."),
    click.option(
        "--min-agreement", type=options.Finite(0, 1), help="Share of equal top-1 tokens, or of equal classes."
    ),
    click.option("--max-perplexity-ratio", type=options.Finite(0), help="B's perplexity over A's."),
    click.option("--min-cosine", type=options.Finite(-1, 1), help="Mean cosine of embeddings."),
)
