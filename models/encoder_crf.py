"""A pretrained encoder of the BERT family, an optional BiLSTM, a linear-chain CRF.

From top to bottom: `hanzoo.data.subwords` gives each character one piece; `layers/encoder.py` reads them, a long text in windows;
`layers/encoder_tagger.py` puts a BiLSTM between where the recipe wants one; `layers/crf_tagger.py` is the head: one CRF, and one
Viterbi, over the whole text.

Source: Devlin et al. 2019 for the encoder; a CRF on it as in BERT-NER-Pytorch and eznlp.
Differs: one piece a character, blanks and rare characters included; no emission for [CLS] and [SEP], so that the CRF's start and
end scores are those of the text; the scheme's constraints hold in training and decoding.
Cost: nearly all of it is the encoder's. The CRF learns its transitions at a rate 30 to 300 times that of the encoder
(`train.optimizer.rates`); at one rate they hardly move.
"""

from __future__ import annotations

from hanzoo.models.layers.crf_tagger import CRFTagger
from hanzoo.models.layers.encoder_tagger import EncoderTagger


class EncoderCRF(EncoderTagger, CRFTagger):
    """Encoder, optional BiLSTM, CRF."""
