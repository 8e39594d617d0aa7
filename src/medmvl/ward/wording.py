"""Fixed texts of the results, in English and Chinese."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Wording:
    """Texts of one language.

    Attributes:
        language: code and meaning for structured reports (RFC 5646).
        probability_of: heading, with `{option}` for the option that the probability is of.
        scored: an answer with its probability: `{answer}`, `{option}`, `{share}`.
    """

    language: tuple[str, str]
    notice: str
    finding: str
    answer: str
    probability: str
    probability_of: str
    scored: str
    series: str
    slices_shown: str
    algorithm: str
    notes: str
    left_out: str


WORDINGS = {
    "en": Wording(
        language=("en", "English"),
        notice="AI-GENERATED. RESEARCH USE ONLY. Not verified by a physician; not for diagnosis.",
        finding="Finding",
        answer="Answer",
        probability="Probability",
        probability_of="Probability of {option}",
        scored="{answer} (probability of {option}: {share})",
        series="Series read",
        slices_shown="Images shown at even steps through the series; the model did not choose them.",
        algorithm="Algorithm",
        notes="Notes",
        left_out="Some characters cannot be shown here; see the structured report or the PDF.",
    ),
    "zh": Wording(
        language=("zh", "Chinese"),
        notice="人工智能生成，仅供科研使用。未经医师核实，不得用于诊断。",
        finding="所见",
        answer="回答",
        probability="概率",
        probability_of="“{option}”的概率",
        scored="{answer}（“{option}”的概率：{share}）",
        series="读取的序列",
        slices_shown="所示图像按等间隔取自该序列，并非由模型选择。",
        algorithm="算法",
        notes="备注",
        left_out="部分字符无法在此显示，请查看结构化报告或PDF。",
    ),
}
