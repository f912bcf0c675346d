"""Text as token ids: corpora, tokenizers, and the token files between them.

It imports `system` and nothing else of the package.
"""

from tinygpt_pl.text.corpus import Corpus, load_corpus
from tinygpt_pl.text.tokenizer import Tokenizer
from tinygpt_pl.text.tokens import Tokens, prepare

__all__ = ["Corpus", "Tokenizer", "Tokens", "load_corpus", "prepare"]
