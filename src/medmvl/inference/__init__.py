"""Answering questions with a checkpoint folder: one question, a stream, or a resumable file of records."""

from medmvl.inference.batch import predict_file, score_file
from medmvl.inference.engine import Answer, GenerationOptions, generate_answers
from medmvl.inference.predictor import Predictor
from medmvl.inference.retriever import Retriever, retrieve_file

__all__ = [
    "Answer",
    "GenerationOptions",
    "Predictor",
    "Retriever",
    "generate_answers",
    "predict_file",
    "retrieve_file",
    "score_file",
]
