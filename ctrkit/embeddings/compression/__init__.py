"""Embeddings in less memory: ``embedding: {compression: {method: .., budget: 0.1}}``, one file a method.

Every method works on all fields' ids at once (``IdSpace``), as the benchmark of Zhang et al. (Experimental Analysis of Large-scale Learnable
Vector Storage Compression, VLDB 2024) does, and solves its sizes from the budget: a fraction of the bytes of the full table, of which
everything that is stored is counted, indices and codes too.

- ``Method`` (``method.py``): its settings, what it searches for, and the codec it trains.
- ``Codec`` (``codec.py``): ids -> vectors in training: TorchRec tables (its parts) and parameters.
- stored form (``Codec.stored``, pieces in ``stored.py``): ids -> vectors out of the bytes that are kept. It is what is evaluated at the
  end of a training, exported and served.
"""
