"""The whole path on real weights: what the server answers against sentence-transformers."""

from __future__ import annotations

import numpy as np
from sentence_transformers import SentenceTransformer

from engine.folder.store import default_models
from tests.servers import ROOT, Server
from tests.texts import varied_texts

MIN_COSINE = 0.99999


def test_200_varied_texts_over_http_agree_with_sentence_transformers(
    stand_in_server: Server,
) -> None:
    texts = varied_texts(200)
    answer = stand_in_server.embed({"input": texts})
    assert answer.status_code == 200
    ours = np.array(answer.json()["embeddings"], dtype=np.float32)
    (stand_in,) = default_models(ROOT / "no-such-folder")
    oracle = SentenceTransformer(str(stand_in.path), device="cpu")
    theirs = np.stack(
        [oracle.encode(t, normalize_embeddings=True, show_progress_bar=False) for t in texts]
    )
    cosines = (ours * theirs).sum(1)
    assert cosines.min() >= MIN_COSINE, texts[int(cosines.argmin())][:80]
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)
