"""Every system's golden checkpoints with a recipe: what tests of all systems run over."""

from dataclasses import dataclass

import nsr_case


@dataclass(frozen=True)
class Case:
    """A system's golden checkpoints, the recipe they were made with, and what a run of them keeps and tells.

    main_pass: the pass that takes the time; block: what its flow calls the number of rows between commits of it.
    networks: of a bundle cut out of the whole one. each: entries of the main pass that such a row has.
    """

    name: str
    checkpoints: tuple[str, ...]
    recipe: str
    stages: tuple[str, ...]
    kept: tuple[str, ...]
    main_pass: str
    block: str
    networks: tuple[str, ...] = ()
    each: int = 1

    def __str__(self) -> str:
        return "+".join((self.name, *self.networks))


VE_RECIPE = (
    '[graph]\nk = 20\n\n[links]\nfeatures = "transformed"\nk = 20\ntau = 0.8\n\n[edge]\nignore_ratio = 0.3\n'
)
CASES = (
    Case(
        "pse-gcn",
        ("pse/checkpoint.pth",),
        "[neighborhood]\nk = 20\nhops = [20, 5]\nactive = 10\n\n[links]\nk = 20\ntau = 0.8\n",
        ("features", "knn", "rerank", "refine", "refined_knn", "links", "clusters"),
        ("knn", "reranked", "refined", "refined_knn", "links", "evidence"),
        "neighborhood",
        "REFINE_BLOCK",
    ),
    Case(
        "nsr-fc",
        nsr_case.CHAIN.checkpoints,
        nsr_case.CHAIN.recipe,
        ("features", "knn", "rerank", "refine", "rescore", "connect", "links", "clusters"),
        (
            "knn",
            "reranked",
            "refined",
            "rescored",
            "connectivity",
            "candidates",
            "certain",
            "confirmed",
            "links",
            "evidence",
        ),
        "connect",
        "CONNECT_BLOCK",
    ),
    Case(
        "nsr-fc",
        nsr_case.CHAIN.checkpoints,
        nsr_case.CHAIN.recipe,
        ("features", "knn", "connect", "links", "clusters"),
        ("knn", "connectivity", "candidates", "certain", "confirmed", "links", "evidence"),
        "connect",
        "CONNECT_BLOCK",
        ("lce", "pce"),
    ),
    Case(
        "nsr-fc",
        nsr_case.CHAIN.checkpoints,
        nsr_case.CHAIN.recipe,
        ("features", "knn", "rerank", "refine", "rescore", "links", "clusters"),
        ("knn", "reranked", "refined", "rescored", "transitions", "links", "evidence"),
        "rescore_first",
        "RESCORE_BLOCK",
        ("refine", "rescore"),
    ),
    Case(
        "sepfl",
        ("sepfl/checkpoint.pth",),
        "[links]\nk = 20\nrho = 0.6\n",
        ("features", "knn", "encode", "links", "clusters"),
        ("knn", "encoded", "candidates", "links", "evidence"),
        "encode",
        "ENCODE_BLOCK",
    ),
    Case(
        "l-gcn",
        ("lgcn/checkpoint.pth",),
        "[neighborhood]\nhops = [19, 5]\nactive = 5\n\n[propagation]\nmax_size = 40\n",
        ("features", "knn", "links", "clusters"),
        ("knn", "links", "evidence"),
        "score",
        "SCORE_BLOCK",
        each=19,
    ),
    Case(
        "gcn-d",
        ("gcnd/checkpoint.pth",),
        '[graph]\nedge_weights = "similarity"\n\n'
        "[[proposals]]\nk = 20\nthreshold = 0.6\nmax_size = 60\n\n"
        "[[proposals.merge]]\nk = 3\nmax_parts = 5\nmax_size = 100\n\n"
        "[[proposals]]\nk = 20\nthreshold = 0.7\nmax_size = 60\n",
        ("features", "knn", "proposals", "detect", "clusters"),
        ("knn", "proposals", "scores", "evidence"),
        "detect",
        "PROPOSAL_BLOCK",
    ),
    Case(
        "ve-gcn",
        ("vegcn/gcn_v_checkpoint.pth", "vegcn/gcn_e_checkpoint.pth"),
        VE_RECIPE,
        ("features", "knn", "confidence", "transformed_knn", "connect", "links", "clusters"),
        ("knn", "confidence", "transformed_knn", "connected", "links", "evidence"),
        "confidence",
        "CONFIDENCE_BLOCK",
    ),
    Case(
        "ve-gcn",
        ("vegcn/gcn_v_checkpoint.pth", "vegcn/gcn_e_checkpoint.pth"),
        VE_RECIPE,
        ("features", "knn", "confidence", "transformed_knn", "links", "clusters"),
        ("knn", "confidence", "transformed_knn", "links", "evidence"),
        "confidence",
        "CONFIDENCE_BLOCK",
        ("vertex",),
    ),
)
