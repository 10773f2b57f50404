"""A pretrained encoder of the BERT family, an optional BiLSTM, a softmax a character: what a CRF is compared with.

As `encoder_crf.py`, but for the head (`layers/softmax_tagger.py`): tags do not know of one another, and may be illegal.

Source: Devlin et al. 2019, section 5.3.
"""

from __future__ import annotations

from hanzoo.models.layers.encoder_tagger import EncoderTagger
from hanzoo.models.layers.softmax_tagger import SoftmaxTagger


class EncoderSoftmax(EncoderTagger, SoftmaxTagger):
    """Encoder, optional BiLSTM, softmax."""
