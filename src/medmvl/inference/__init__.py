"""A checkpoint folder answers: one question, a stream, or a file of records that survives being killed."""

from medmvl.inference.batch import predict_file, score_file
from medmvl.inference.predictor import Answer, GenerationOptions, Predictor
from medmvl.inference.retriever import Retriever, retrieve_file

__all__ = ["Answer", "GenerationOptions", "Predictor", "Retriever", "predict_file", "retrieve_file", "score_file"]
