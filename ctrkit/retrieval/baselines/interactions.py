"""Training events as a matrix, and each query's history as one."""

import numpy as np
from scipy import sparse

from ctrkit.retrieval.dataset import RetrievalDataset
from ctrkit.retrieval.events import Queries
from ctrkit.retrieval.rows import take_bags


def interactions(dataset: RetrievalDataset) -> sparse.csr_array:
    """1 where a user had an item in training, float32 ``[users, items]``."""
    index = dataset.events.of_split("train")
    user, item = dataset.events.user[index], dataset.events.item[index]
    shape = (dataset.users.height, dataset.items.height)
    return sparse.csr_array(sparse.coo_array((np.ones(len(index), np.float32), (user, item)), shape=shape))


def histories(queries: Queries, which: np.ndarray, items: int) -> sparse.csr_array:
    """1 where a query's history holds an item, float32 ``[len(which), items]``."""
    values, offsets = take_bags(queries.history, which)
    return sparse.csr_array((np.ones(len(values), np.float32), values, offsets), shape=(len(which), items))
