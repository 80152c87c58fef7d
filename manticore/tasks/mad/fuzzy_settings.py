"""Settings of fuzzy in-context recall."""

from __future__ import annotations

from dataclasses import dataclass

from manticore.tasks.checks import check_flag, check_noise, check_vocabulary, check_whole


@dataclass(frozen=True, kw_only=True)
class FuzzyRecallSettings:
    """Fuzzy in-context recall."""

    vocab_size: int = 16
    """Keys, values, noise, then the pad token and (single query) the copy token."""
    seq_len: int = 128
    """Input tokens."""
    multi_query: bool = True
    """Score every key that comes back; otherwise the last one only, after a copy token."""
    k_motif_size: int = 3
    """Most tokens of a key."""
    v_motif_size: int = 3
    """Most tokens of a value."""
    noise_vocab_size: int = 0
    """Tokens that are neither keys nor values."""
    frac_noise: float = 0.0
    """Probability that noise stands where a pair would."""

    @property
    def n_special(self) -> int:
        """Pad token, and copy token with a single query."""
        return 1 if self.multi_query else 2

    @property
    def pad_token(self) -> int:
        """Fills the example on the left."""
        return self.vocab_size - self.n_special

    @property
    def n_plain(self) -> int:
        """Tokens of keys and of values together."""
        return self.vocab_size - self.n_special - self.noise_vocab_size

    @property
    def n_keys(self) -> int:
        """Keys are made of tokens 0 to n_keys - 1."""
        return self.n_plain // 2

    @property
    def n_values(self) -> int:
        """Values are made of tokens n_keys to n_plain - 1."""
        return self.n_plain - self.n_keys

    @property
    def longest_pair(self) -> int:
        """Most tokens of a key with its value."""
        return self.k_motif_size + self.v_motif_size

    @property
    def example_length(self) -> int:
        """Input tokens."""
        return self.seq_len

    def __post_init__(self) -> None:
        check_flag("multi_query", self.multi_query)
        check_noise(self.frac_noise, self.noise_vocab_size)
        check_whole("k_motif_size", self.k_motif_size, 1)
        check_whole("v_motif_size", self.v_motif_size, 1)
        # Tokens of a motif differ; with two motifs at least there is something to recall.
        keys, values = max(2, self.k_motif_size), max(2, self.v_motif_size)
        # Keys take the smaller half of an odd number.
        least = max(2 * keys, 2 * values - 1)
        what = f"motifs of {self.k_motif_size} and {self.v_motif_size} different tokens"
        check_vocabulary(self.vocab_size, self.n_special, self.noise_vocab_size, least, what)
        shortest = 2 * self.longest_pair + 1
        why = "the longest pair, once to show it and once to ask for it"
        check_whole("seq_len", self.seq_len, shortest, why)
        if (self.n_keys + 1) ** self.k_motif_size >= 2**62:
            raise ValueError(
                f"k_motif_size={self.k_motif_size} makes too many keys of {self.n_keys} tokens. "
                "Allowed: (vocab_size / 2) ** k_motif_size below 2 ** 62. Lower k_motif_size."
            )
