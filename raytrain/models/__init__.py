"""Models and their tokenizers, from Hugging Face Transformers."""
