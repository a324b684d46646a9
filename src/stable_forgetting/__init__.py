"""Bounded parameter-efficient unlearning for language models and vision transformers."""
