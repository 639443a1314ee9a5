// What Python calls, by ctypes: plain structures of numbers and addresses. Nothing here throws, keeps or frees memory
// of the caller. A change to a structure must be made in `library.py` too.
//
// What takes rows of a table looks at all of them before it reads or writes any: where one lies outside the table it
// does nothing and returns 0, else 1.

#include <numeric>

#include "best.h"
#include "block.h"
#include "embedding.h"
#include "full_softmax.h"
#include "last_norm.h"
#include "many_softmax.h"
#include "newest.h"
#include "probe.h"
#include "rows.h"
#include "scores.h"
#include "softmax.h"

extern "C" {

int64_t native_lanes() { return native::kLanes; }

int64_t native_block_saved(int64_t positions, int64_t outputs, int64_t units, int64_t heads) {
    return native::Block::saved_size(positions, outputs, units, heads);
}

void native_block_forward(const BlockCall* call) { native::Block(*call).forward(); }

void native_block_backward(const BlockCall* call) { native::Block(*call).backward(); }

int64_t native_embedding_forward(const EmbeddingCall* call) {
    const native::Embedding embedding(*call);
    if (!native::all_within(call->rows, embedding.positions(), call->table_rows)) return 0;
    embedding.forward();
    return 1;
}

void native_embedding_backward(const EmbeddingCall* call) { native::Embedding(*call).backward(); }

void native_norm_forward(const NormCall* call) { native::LastNorm(*call).forward(); }

void native_norm_backward(const NormCall* call) { native::LastNorm(*call).backward(); }

void native_softmax_gradients(const SoftmaxCall* call) { native::softmax_gradients(*call); }

int64_t native_has_short_products() { return HAS_SHORT_PRODUCTS; }

void native_full_softmax(const FullSoftmaxCall* call) { native::full_softmax(*call); }

void native_many_softmax(const ManySoftmaxCall* call) { native::many_softmax(*call); }

int64_t native_sort_rows(const SortCall* call) { return native::sort_rows(*call); }

void native_merge_rows(const MergeCall* call) { native::merge_rows(*call); }

int64_t native_adam_rows(const AdamCall* call) {
    if (!native::all_within(call->rows, call->touched, call->table_rows)) return 0;
    native::RowsAdam(*call).learn();
    return 1;
}

int64_t native_scores_forward(const ScoresCall* call) {
    if (!native::all_within(call->rows, call->positions * call->choices, call->table_rows)) return 0;
    native::scores_forward(*call);
    return 1;
}

void native_scores_backward(const ScoresCall* call) { native::scores_backward(*call); }

void native_best(const BestCall* call) { native::best_of(*call); }

void native_in_order(const OrderCall* call) { native::in_order(*call); }

void* native_newest_prepare(const NewestWeights* weights) { return new native::Prepared(*weights); }

int64_t native_newest(const void* prepared, const NewestCall* call) {
    const native::Prepared& weights = *static_cast<const native::Prepared*>(prepared);
    const int64_t positions = std::accumulate(call->lengths, call->lengths + call->sequences, int64_t{0});
    if (!native::all_within(call->rows, positions, weights.given_.table_rows)) return 0;
    native::Newest(weights, *call).find();
    return 1;
}

void native_newest_forget(void* prepared) { delete static_cast<native::Prepared*>(prepared); }

void native_probe(const ProbeCall* call) { native::probe(*call); }

}  // extern "C"
