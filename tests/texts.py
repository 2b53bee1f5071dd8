"""Texts that break servers: empty, one character, scripts, emoji, control characters, very long."""

from __future__ import annotations

import random

_FIXED = [
    "",
    "a",
    " ",
    "?",
    "天",
    "🎉",
    "\x00",
    "\n\t\r\n",
    "Hello, world!",
    "why is the sky blue?",
    "天空为什么是蓝色的？因为瑞利散射。",
    "日本語のテキストと한국어 문장",
    "Привет, мир! مرحبا بالعالم שלום עולם",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇨🇳 emoji sequences",
    "naïve café façade Ünïcödé",
    "control \x01\x02\x7f\x85 characters \u200b\u200d\ufeff invisible",
    "[CLS] [SEP] [PAD] [MASK] <s> </s> <pad> <|endoftext|>",
    "x" * 10_000,
    "word " * 2_000,
    "天" * 10_000,
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 mathematical, ﬁ ligature, ① circled",
    "SELECT * FROM t; -- '; DROP TABLE t",
    '{"input": ["json"], "n": 1e400}',
    "https://example.org/a?b=c&d=%20#e",
    "line one\nline two\r\nline three\n\n\n",
]
_SCRIPTS = [
    "abcdefghij klmno pqrst",
    "天地玄黄宇宙洪荒 日月盈昃",
    "абвгд еёжзий",
    "🎉🚀😀 ",
    "0123456789.,;",
]


def varied_texts(count: int) -> list[str]:
    """The fixed ones, then random mixes of scripts, 1 to 2,000 characters."""
    rng = random.Random(7)
    mixed = [
        "".join(
            rng.choice(rng.choice(_SCRIPTS)) for _ in range(min(2_000, int(rng.paretovariate(0.6))))
        )
        for _ in range(count - len(_FIXED))
    ]
    return _FIXED + mixed
