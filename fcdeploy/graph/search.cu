// CUDA kernels for neighbor lists: codes of rows, the best of many scores, exact similarities and their order.
//
// A key is a score, or a similarity, above an id: keys of 64 bits compare as pairs of them do, the higher score first,
// of equal ones the lower id. Those are the keys of best_scores.py and knn.py, and so are the lists, to the bit: scores
// of codes are exact integers, and similarities are added up in the order of inner_products.py.
// Blocks have whole warps. A block's shared memory holds its keys, 8 bytes each, a power of two of them.

#include "keys.cuh"

typedef unsigned short half_bits;

struct alignas(16) sixteen_bytes { int a, b, c, d; };

// The bits of float16 of an integer of at most 11 bits.
__device__ half_bits half_of_integer(float integer)
{
    const unsigned bits = __float_as_int(integer), size = bits & 0x7fffffffu;
    return size ? (bits >> 16 & 0x8000u) | ((size >> 13) - (112u << 10)) : 0;
}

// Round rows (m, d) to codes (.., stride), zero behind d; row r becomes row places[r], or r where there are no places.
extern "C" __global__ void codes_of_rows(
    const float* rows, const int* places, half_bits* codes, long long m, int d, int stride, float factor, float limit)
{
    for (long long row = blockIdx.x; row < m; row += gridDim.x) {
        half_bits* out = codes + (places ? places[row] : row) * stride;
        for (int c = threadIdx.x; c < stride; c += blockDim.x) {
            const float code = c < d ? rintf(__fmul_rn(rows[row * d + c], factor)) : 0.0f;
            out[c] = half_of_integer(fminf(fmaxf(code, -limit), limit));
        }
    }
}

// Codes (m, d) int8 as rows (m, stride) of float16, zero behind d.
extern "C" __global__ void halves_of_codes(const signed char* codes, half_bits* halves, long long m, int d, int stride)
{
    for (long long row = blockIdx.x; row < m; row += gridDim.x)
        for (int c = threadIdx.x; c < stride; c += blockDim.x)
            halves[row * stride + c] = half_of_integer(c < d ? codes[row * d + c] : 0);
}

// Copy rows of 16 * width bytes: row r of ``out`` is row which[r] of ``source``.
extern "C" __global__ void copy_rows(
    const sixteen_bytes* source, const int* which, sixteen_bytes* out, long long m, int width)
{
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x; at < m * width; at += step)
        out[at] = source[which[at / width] * (long long)width + at % width];
}

struct Integers {
    static __device__ int place(float score) { return (int)score; }
    static __device__ float score(int place) { return (float)place; }
};

struct Floats {
    static __device__ int place(float score) { return place_of_float(score); }
    static __device__ float score(int place) { return float_of_place(place); }
};

// Keep the ``wide`` best of a row's keys and of the scores in its segments; a block a row.
//
// Segments of row r are segments[r] up to segments[r + 1]: segment s is scores[at[s]] and on, one for each of the ids
// from first[lists[s]] up to first[lists[s] + 1]. keys: (rows, wide), of which held[r] are there, the best first;
// floors[r]: the last of them if there are ``wide``, else NO_KEY. capacity: of the buffer, above ``wide``.
template <typename scale>
__device__ void best(
    const float* scores, const long long* at, const int* lists, const int* segments, const int* first, const int* ids,
    int wide, int capacity, key* keys, int* held, key* floors)
{
    __shared__ int count;
    __shared__ key floor;
    const int row = blockIdx.x;
    const int from = segments[row], to = segments[row + 1];
    if (from == to)
        return;
    key *buffer = (key*)shared, *own = keys + (long long)row * wide;
    for (int i = threadIdx.x; i < held[row]; i += blockDim.x)
        buffer[i] = own[i];
    if (threadIdx.x == 0) {
        count = held[row];
        floor = floors[row];
    }
    __syncthreads();
    const int round = capacity - wide;
    for (int s = from; s < to; s++) {
        const float* segment = scores + at[s];
        const int* named = ids + first[lists[s]];
        const int members = first[lists[s] + 1] - first[lists[s]];
        for (int start = 0; start < members; start += round) {
            const int stop = min(start + round, members), before = count;
            __syncthreads();  // all have read the count before it grows
            if (before + stop - start > capacity) {
                sort_down(buffer, before);
                if (threadIdx.x == 0) {
                    count = wide;
                    floor = buffer[wide - 1];
                }
                __syncthreads();
            }
            const key last = floor;
            const float least = last == NO_KEY ? __int_as_float(0xff800000) : scale::score((int)(last >> 32));
            for (int c = start + threadIdx.x; c < stop; c += blockDim.x) {
                const float score = segment[c];
                if (score < least)
                    continue;
                const key one = (key)scale::place(score) * (1LL << 32) + (LAST_ID - named[c]);
                if (one > last)
                    buffer[atomicAdd(&count, 1)] = one;
            }
            __syncthreads();
        }
    }
    const int found = count;
    sort_down(buffer, found);
    for (int i = threadIdx.x; i < found && i < wide; i += blockDim.x)
        own[i] = buffer[i];
    if (threadIdx.x == 0) {
        held[row] = min(found, wide);
        floors[row] = found < wide ? NO_KEY : buffer[wide - 1];
    }
}

extern "C" __global__ void keep_integers(
    const float* scores, const long long* at, const int* lists, const int* segments, const int* first, const int* ids,
    int wide, int capacity, key* keys, int* held, key* floors)
{
    best<Integers>(scores, at, lists, segments, first, ids, wide, capacity, keys, held, floors);
}

extern "C" __global__ void keep_floats(
    const float* scores, const long long* at, const int* lists, const int* segments, const int* first, const int* ids,
    int wide, int capacity, key* keys, int* held, key* floors)
{
    best<Floats>(scores, at, lists, segments, first, ids, wide, capacity, keys, held, floors);
}

extern "C" __global__ void clear_keys(int* held, key* floors, int rows)
{
    for (int row = blockIdx.x * blockDim.x + threadIdx.x; row < rows; row += gridDim.x * blockDim.x) {
        held[row] = 0;
        floors[row] = NO_KEY;
    }
}

extern "C" __global__ void ids_of_keys(const key* keys, int* ids, long long count)
{
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x; at < count; at += step)
        ids[at] = id_of(keys[at]);
}

// Find the cells whose score times 1,024 reaches the row's limit, but for the first ``count`` of ``near``; a warp a row.
//
// scores: (rows, stride) of the centroids; near: (rows, reach). Writes how many there are to totals (rows,), and, where
// there are ``starts``, the cells themselves to lists[starts[r]] and on, ascending.
extern "C" __global__ void cells_above(
    const float* scores, int stride, int cells, const int* near, int reach, const int* count, const key* limits,
    const long long* starts, int* lists, int* totals, int rows)
{
    const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows)
        return;
    const int* done = near + (long long)row * reach;
    int total = 0;
    for (int start = 0; start < cells; start += 32) {
        const int cell = start + lane;
        bool wanted = cell < cells && (key)scores[(long long)row * stride + cell] * 1024 >= limits[row];
        for (int p = 0; wanted && p < count[row]; p++)
            wanted = done[p] != cell;
        const unsigned all = __ballot_sync(0xffffffffu, wanted);
        if (starts && wanted)
            lists[starts[row] + total + __popc(all & (1u << lane) - 1)] = cell;
        total += __popc(all);
    }
    if (lane == 0)
        totals[row] = total;
}

// Sort candidates by their similarity: the face itself first, then downwards, equal ones by id; a block a row.
//
// keys: (rows, wide), whose ids are the candidates of faces (rows,); vectors: (n, d). Writes ids and sims (rows, k).
extern "C" __global__ void order_candidates(
    const key* keys, int wide, const float* vectors, int d, const int* faces, int k, int* ids, float* sims)
{
    __shared__ int place;
    key* buffer = (key*)shared;
    const int lane = threadIdx.x % 32, face = faces[blockIdx.x];
    const float* own = vectors + (long long)face * d;
    for (int p = threadIdx.x / 32; p <= wide; p += blockDim.x / 32) {
        const int other = p < wide ? id_of(keys[(long long)blockIdx.x * wide + p]) : face;
        const float sim = inner_product(own, vectors + (long long)other * d, d);
        if (lane == 0 && p < wide)
            buffer[p] = (key)place_of_float(sim) * (1LL << 32) + (LAST_ID - other);
        if (lane == 0 && p == wide) {
            ids[(long long)blockIdx.x * k] = face;
            sims[(long long)blockIdx.x * k] = sim;
        }
    }
    if (threadIdx.x == 0)
        place = wide;
    __syncthreads();
    sort_down(buffer, wide);
    for (int p = threadIdx.x; p < wide; p += blockDim.x)
        if (id_of(buffer[p]) == face)
            place = p;
    __syncthreads();
    for (int p = threadIdx.x; p < wide; p += blockDim.x) {
        const int to = p + (p < place);
        if (p == place || to >= k)
            continue;
        ids[(long long)blockIdx.x * k + to] = id_of(buffer[p]);
        sims[(long long)blockIdx.x * k + to] = float_of_place((int)(buffer[p] >> 32));
    }
}
