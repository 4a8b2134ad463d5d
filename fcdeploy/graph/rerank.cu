// CUDA kernels for re-ranking: what rerank.py computes, one block a face, to the bit.
//
// Faces are numbered by their place; ids (n, k) are the lists of all of them. A set of faces is a hash table in shared
// memory, a power of two of slots above the number of its members, -1 where a slot is free.

#include "keys.cuh"

typedef unsigned char mark;

#define REACH 10  // first neighbors of neighbors that are candidates, too
#define IN_FULL 1
#define IN_HALF 2
#define SCALE (1LL << 27)  // overlaps of sets below 2^12 members that differ do so by more than 1 / SCALE

__device__ int free_slot(int* slots, int count, int face)
{
    unsigned slot = (unsigned)face * 2654435761u & (count - 1);
    for (;; slot = slot + 1 & (count - 1)) {
        const int found = atomicCAS(&slots[slot], -1, face);
        if (found == -1 || found == face)
            return found == -1 ? (int)slot : -1 - (int)slot;
    }
}

// Add a face to a set; whether it was new.
__device__ bool added(int* slots, int count, int face) { return free_slot(slots, count, face) >= 0; }

// Where a face of a set is, or -1.
__device__ int slot_of(const int* slots, int count, int face)
{
    unsigned slot = (unsigned)face * 2654435761u & (count - 1);
    while (slots[slot] != face && slots[slot] != -1)
        slot = slot + 1 & (count - 1);
    return slots[slot] == face ? (int)slot : -1;
}

__device__ void clear(int* numbers, int count, int to)
{
    for (int i = threadIdx.x; i < count; i += blockDim.x)
        numbers[i] = to;
}

// The lists (n, k) by place of lists (n, stride) by face: faces lie at places, place p holds face order[p].
extern "C" __global__ void lists_by_place(
    const int* lists, int stride, const int* order, const int* place, int* ids, int k, long long entries)
{
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x; at < entries; at += step)
        ids[at] = place[lists[(long long)order[at / k] * stride + at % k]];
}

// Numbers (n, stride) by face as (n, k) by place.
extern "C" __global__ void numbers_by_place(
    const float* numbers, int stride, const int* order, float* out, int k, long long entries)
{
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x; at < entries; at += step)
        out[at] = numbers[(long long)order[at / k] * stride + at % k];
}

// Mark which neighbors of each face have it as a neighbor, too: marks (n, k); a warp a neighbor.
extern "C" __global__ void mark_mutual(const int* ids, int k, mark* marks)
{
    const int face = blockIdx.x, lane = threadIdx.x % 32, half = k / 2;
    for (int p = threadIdx.x / 32; p < k; p += blockDim.x / 32) {
        const int* theirs = ids + (long long)ids[(long long)face * k + p] * k;
        unsigned near = 0, far = 0;
        for (int start = 0; start < k; start += 32) {
            const int q = start + lane;
            const bool same = q < k && theirs[q] == face;
            near |= __ballot_sync(0xffffffffu, same && q < half);
            far |= __ballot_sync(0xffffffffu, same && q >= half);
        }
        if (lane == 0)
            marks[(long long)face * k + p] = near && p < half ? IN_HALF : near || far ? IN_FULL : 0;
    }
}

// Build R* of the faces from ``start`` on: how many members each has, counts (blocks,), and, where there are ``starts``,
// the members of face f at members[starts[f]] and on, R_k(f) first and in the order of the CPU.
//
// Shared memory: slots, the first place of each member, the neighbors in R_k(f), and whether each brings others.
extern "C" __global__ void expand_reciprocal(
    const int* ids, const mark* mutual, int k, int start, int slots, int* counts, const long long* starts,
    int* members)
{
    __shared__ int own, written;
    const int face = start + blockIdx.x, half = k / 2, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int warps = blockDim.x / 32;
    int *table = shared, *first = table + slots, *near = first + slots, *brings = near + k;
    clear(table, slots, -1);
    clear(first, slots, 0x7fffffff);
    __syncthreads();
    if (warp == 0) {
        int found = 0;
        for (int from = 0; from < k; from += 32) {
            const int p = from + lane;
            const bool kept = p < k && mutual[(long long)face * k + p];
            const unsigned all = __ballot_sync(0xffffffffu, kept);
            if (kept) {
                const int at = found + __popc(all & (1u << lane) - 1);
                near[at] = ids[(long long)face * k + p];
                first[free_slot(table, slots, near[at])] = at;
            }
            found += __popc(all);
        }
        if (lane == 0)
            own = found;
    }
    __syncthreads();
    const int count = own;
    for (int r = warp; r < count; r += warps) {
        const long long list = (long long)near[r] * k;
        int total = 0, both = 0;
        for (int from = 0; from < half; from += 32) {
            const int q = from + lane;
            const bool there = q < half && mutual[list + q] == IN_HALF;
            total += __popc(__ballot_sync(0xffffffffu, there));
            both += __popc(__ballot_sync(0xffffffffu, there && slot_of(table, slots, ids[list + q]) >= 0));
        }
        if (lane == 0)
            brings[r] = 3 * both >= 2 * total;
    }
    __syncthreads();
    for (int r = warp; r < count; r += warps) {
        const long long list = (long long)near[r] * k;
        for (int q = lane; brings[r] && q < half; q += 32)
            if (mutual[list + q] == IN_HALF) {
                const int slot = free_slot(table, slots, ids[list + q]);
                atomicMin(&first[slot >= 0 ? slot : -1 - slot], k + r * half + q);
            }
    }
    __syncthreads();
    if (warp == 0) {
        int* out = starts ? members + starts[face] : 0;
        int found = count;
        for (int r = lane; out && r < count; r += 32)
            out[r] = near[r];
        for (int r = 0; r < count; r++) {
            if (!brings[r])
                continue;
            for (int from = 0; from < half; from += 32) {
                const int q = from + lane;
                const long long at = (long long)near[r] * k + q;
                const bool here = q < half && mutual[at] == IN_HALF
                    && first[slot_of(table, slots, ids[at])] == k + r * half + q;
                const unsigned all = __ballot_sync(0xffffffffu, here);
                if (out && here)
                    out[found + __popc(all & (1u << lane) - 1)] = ids[at];
                found += __popc(all);
            }
        }
        if (lane == 0)
            written = found;
    }
    __syncthreads();
    if (threadIdx.x == 0)
        counts[blockIdx.x] = written;
}

// Rank the candidates of faces (blocks,) by the overlap of their sets: ids (blocks, k) and overlaps (blocks, k).
//
// sims: (blocks, k) of the faces' lists; names: (n,), under which a face lies in vectors (.., d) and is ordered among
// ties. places: a power of two, no fewer than there may be candidates; slots: of the larger of the set of candidates
// and the face's own. Shared memory: keys, candidates, cosines, how many members each shares, and a table.
extern "C" __global__ void rank_candidates(
    const int* ids, int k, const float* sims, const float* vectors, int d, const int* names, const long long* starts,
    const int* counts, const int* members, const int* faces, int places, int slots, int* ranked, double* overlaps)
{
    __shared__ int found;
    const int face = faces[blockIdx.x], lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const int reach = min(REACH, k);
    key* keys = (key*)shared;
    int *candidates = (int*)(keys + places), *shares = candidates + 2 * places, *table = shares + places;
    float* cosines = (float*)(candidates + places);
    clear(table, slots, -1);
    if (threadIdx.x == 0)
        found = k;
    __syncthreads();
    for (int p = threadIdx.x; p < k; p += blockDim.x) {
        candidates[p] = ids[(long long)face * k + p];
        added(table, slots, candidates[p]);
        cosines[p] = sims[(long long)blockIdx.x * k + p];
    }
    __syncthreads();
    for (int at = threadIdx.x; at < k * reach; at += blockDim.x) {
        const int other = ids[(long long)candidates[at / reach] * k + at % reach];
        if (added(table, slots, other))
            candidates[atomicAdd(&found, 1)] = other;
    }
    __syncthreads();
    const int count = found;
    clear(table, slots, -1);
    __syncthreads();
    for (int m = threadIdx.x; m < counts[face]; m += blockDim.x)
        added(table, slots, members[starts[face] + m]);
    __syncthreads();
    for (int c = warp; c < count; c += warps) {
        const int *theirs = members + starts[candidates[c]], size = counts[candidates[c]];
        int both = 0;
        for (int from = 0; from < size; from += 32) {
            const bool there = from + lane < size && slot_of(table, slots, theirs[from + lane]) >= 0;
            both += __popc(__ballot_sync(0xffffffffu, there));
        }
        const int together = counts[face] + size - both;
        // The overlap, exactly in order; members of the face's own list before others; which candidate it is of.
        const key overlap = together ? both * SCALE / together : 0;
        if (lane == 0) {
            shares[c] = both;
            keys[c] = overlap * (1LL << 32) + (c < k ? 1 << 30 : 0) + c;
        }
    }
    __syncthreads();
    sort_down(keys, count);
    // Runs of equal overlaps and kinds: cosines are needed where one reaches into the first k and holds several.
    for (int c = warp; c < count; c += warps) {
        const key run = keys[c] >> 30;
        const int which = (int)(keys[c] & (1 << 30) - 1);
        const bool tied = c > 0 && keys[c - 1] >> 30 == run || c + 1 < count && keys[c + 1] >> 30 == run;
        if (which < k || !tied || keys[k - 1] >> 30 > run)
            continue;
        const float cosine = inner_product(
            vectors + (long long)names[face] * d, vectors + (long long)names[candidates[which]] * d, d);
        if (lane == 0)
            cosines[which] = cosine;
    }
    __syncthreads();
    for (int c = threadIdx.x; c < count; c += blockDim.x) {
        const key run = keys[c] >> 30;
        const int which = (int)(keys[c] & (1 << 30) - 1), name = names[candidates[which]];
        int begin = c, end = c + 1, rank = 0;
        if (keys[k - 1] >> 30 > run)
            continue;
        while (begin > 0 && keys[begin - 1] >> 30 == run)
            begin--;
        while (end < count && keys[end] >> 30 == run)
            end++;
        for (int other = begin; end > begin + 1 && other < end; other++) {
            const int one = (int)(keys[other] & (1 << 30) - 1);
            rank += cosines[one] > cosines[which]
                || cosines[one] == cosines[which] && names[candidates[one]] < name;
        }
        if (begin + rank >= k)
            continue;
        const int together = counts[face] + counts[candidates[which]] - shares[which];
        const long long to = (long long)blockIdx.x * k + begin + rank;
        ranked[to] = candidates[which];
        overlaps[to] = together ? (double)shares[which] / together : 0.0;
    }
}
