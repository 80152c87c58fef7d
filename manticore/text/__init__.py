"""Text: corpora, splits, tokenizers, packed batches, and the n-gram baseline."""
