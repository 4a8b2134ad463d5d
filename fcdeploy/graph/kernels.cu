// CUDA kernels: rows gathered from tables, and the sparse steps of layer-wise inference.
//
// The sums are those of aggregation.py, one block of threads a face. Every sum is taken in one order, that of the
// members' first places in the neighborhood, so that a run repeats to the bit. Tables hold float32, or float16 in
// unsigned short. A block's shared memory holds each place's face and weight, and a hash table of the faces with the
// first place of each: 8 (places + slots) bytes, slots a power of two above the number of places.

typedef unsigned short half_bits;

__device__ float number(const float* table, long long at) { return table[at]; }

__device__ float number(const half_bits* table, long long at)
{
    const unsigned bits = table[at];
    const unsigned sign = (bits & 0x8000u) << 16, rest = bits & 0x7fffu;
    if (rest >= 0x7c00u)  // infinite, or NaN
        return __int_as_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    // Moved to float32's place, a number is 2^112 times too small; this holds below the normal ones, too.
    return __int_as_float(sign | __float_as_int(__int_as_float(rest << 13) * __int_as_float(0x77800000)));
}

extern "C" __global__ void gather_rows(
    const float* table, const int* nodes, float* out, long long rows, int width)
{
    for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
        const int face = nodes[row];
        for (int c = threadIdx.x; c < width; c += blockDim.x)
            out[row * width + c] = face < 0 ? 0.0f : table[(long long)face * width + c];
    }
}

// Rows of ``rows`` at places of ``out``.
extern "C" __global__ void scatter_rows(
    const float* rows, const int* places, float* out, long long count, int width)
{
    for (long long row = blockIdx.x; row < count; row += gridDim.x)
        for (int c = threadIdx.x; c < width; c += blockDim.x)
            out[(long long)places[row] * width + c] = rows[row * width + c];
}

// Add 1 to ``found`` for every number that is infinite or NaN.
extern "C" __global__ void count_not_finite(const float* numbers, long long count, int* found)
{
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x; at < count; at += step)
        if ((__float_as_int(numbers[at]) & 0x7f800000) == 0x7f800000)
            atomicAdd(found, 1);
}

// The p-th place of a face's neighborhood: itself, its first hop, then the second hop of all but the first of these.
__device__ int member(const int* ranked, int k, int face, int first_hop, int second_hop, int p)
{
    const int* own = ranked + (long long)face * k;
    if (p == 0)
        return face;
    if (p <= first_hop)
        return own[p - 1];
    p -= first_hop + 1;
    return ranked[(long long)own[p / second_hop + 1] * k + p % second_hop + 1];
}

// The slot of a face, or a free one where it belongs.
__device__ int slot_of(const int* keys, int slots, int face)
{
    unsigned slot = (unsigned)face * 2654435761u & (slots - 1);
    while (keys[slot] != face && keys[slot] != -1)
        slot = slot + 1 & (slots - 1);
    return slot;
}

// Write a neighborhood's places, each face at its first place only and -1 at the others, with weights of 0.
__device__ void collect(
    const int* ranked, int k, int face, int first_hop, int second_hop, int places, int slots,
    int* faces, float* weights, int* keys, int* first)
{
    for (int s = threadIdx.x; s < slots; s += blockDim.x) {
        keys[s] = -1;
        first[s] = places;
    }
    __syncthreads();
    for (int p = threadIdx.x; p < places; p += blockDim.x) {
        const int other = member(ranked, k, face, first_hop, second_hop, p);
        unsigned slot = (unsigned)other * 2654435761u & (slots - 1);
        for (;; slot = slot + 1 & (slots - 1)) {
            const int found = atomicCAS(&keys[slot], -1, other);
            if (found == -1 || found == other)
                break;
        }
        atomicMin(&first[slot], p);
        faces[p] = other;
        weights[p] = 0;
    }
    __syncthreads();
    for (int p = threadIdx.x; p < places; p += blockDim.x)
        if (first[slot_of(keys, slots, faces[p])] != p)
            faces[p] = -1;
    __syncthreads();
}

// Move the places of positive weight to the front, in order; return how many they are, to all threads.
__device__ int compact(int places, int* faces, float* weights, int* count)
{
    if (threadIdx.x == 0) {
        int kept = 0;
        for (int p = 0; p < places; p++)
            if (faces[p] >= 0 && weights[p] > 0) {
                faces[kept] = faces[p];
                weights[kept++] = weights[p];
            }
        *count = kept;
    }
    __syncthreads();
    return *count;
}

template <typename number_type>
__device__ void add_rows(
    int count, const int* faces, const float* weights, const number_type* table, int width, float divisor,
    float* out)
{
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
        float sum = 0;
        for (int t = 0; t < count; t++)
            sum += weights[t] * number(table, (long long)faces[t] * width + c);
        out[c] = sum / divisor;
    }
}

template <typename number_type>
__device__ void connected(
    const int* ranked, int k, const int* ids, const float* sims, int stride, int active, const int* asked,
    int first_hop, int second_hop, int slots, int times, float eps, const number_type* table, int width, float* out)
{
    extern __shared__ int shared[];
    __shared__ int count;
    const int places = 1 + first_hop + (first_hop - 1) * second_hop, face = asked[blockIdx.x];
    int* faces = shared;
    float* weights = (float*)(shared + places);
    int *keys = shared + 2 * places, *first = keys + slots;
    collect(ranked, k, face, first_hop, second_hop, places, slots, faces, weights, keys, first);
    // Bits of positive floats are in the order of the floats.
    for (int q = threadIdx.x; q < active; q += blockDim.x) {
        const int other = ids[(long long)face * stride + q];
        const float sim = sims[(long long)face * stride + q];
        const int slot = slot_of(keys, slots, other);
        if (other != face && keys[slot] == other && sim > 0)
            atomicMax((int*)&weights[first[slot]], __float_as_int(sim));
    }
    for (int p = 1 + threadIdx.x; p < places; p += blockDim.x) {
        if (faces[p] < 0)
            continue;
        for (int q = 0; q < active; q++) {
            const float sim = sims[(long long)faces[p] * stride + q];
            if (ids[(long long)faces[p] * stride + q] == face && sim > 0)
                atomicMax((int*)&weights[p], __float_as_int(sim));
        }
    }
    if (threadIdx.x == 0)
        weights[0] = 1;
    __syncthreads();
    const int kept = compact(places, faces, weights, &count);
    if (threadIdx.x == 0)
        for (int time = 0; time < times; time++) {
            float total = eps;
            for (int t = 0; t < kept; t++)
                total += weights[t];
            for (int t = 0; t < kept; t++)
                weights[t] /= total;
        }
    __syncthreads();
    add_rows(kept, faces, weights, table, width, 1.0f, out + (long long)blockIdx.x * width);
}

template <typename number_type>
__device__ void similar(
    const int* ranked, int k, const int* asked, int first_hop, int second_hop, int slots, float threshold,
    float eps, const number_type* directions, int across, const number_type* table, int width, float* out)
{
    extern __shared__ int shared[];
    __shared__ int count;
    __shared__ float total;
    const int places = 1 + first_hop + (first_hop - 1) * second_hop, face = asked[blockIdx.x];
    int* faces = shared;
    float* weights = (float*)(shared + places);
    int *keys = shared + 2 * places, *first = keys + slots;
    collect(ranked, k, face, first_hop, second_hop, places, slots, faces, weights, keys, first);
    // A warp a member.
    const int lane = threadIdx.x % 32;
    for (int p = threadIdx.x / 32; p < places; p += blockDim.x / 32) {
        if (faces[p] < 0)
            continue;
        float sum = 0;
        for (int c = lane; c < across; c += 32)
            sum += number(directions, (long long)face * across + c)
                * number(directions, (long long)faces[p] * across + c);
        for (int apart = 16; apart; apart /= 2)
            sum += __shfl_xor_sync(0xffffffffu, sum, apart);
        if (lane == 0 && sum >= threshold)
            weights[p] = sum;
    }
    __syncthreads();
    const int kept = compact(places, faces, weights, &count);
    if (threadIdx.x == 0) {
        total = eps;
        for (int t = 0; t < kept; t++)
            total += weights[t];
    }
    __syncthreads();
    add_rows(kept, faces, weights, table, width, total, out + (long long)blockIdx.x * width);
}

extern "C" __global__ void sum_connected_float32(
    const int* ranked, int k, const int* ids, const float* sims, int stride, int active, const int* asked,
    int first_hop, int second_hop, int slots, int times, float eps, const float* table, int width, float* out)
{
    connected(
        ranked, k, ids, sims, stride, active, asked, first_hop, second_hop, slots, times, eps, table, width, out);
}

extern "C" __global__ void sum_connected_float16(
    const int* ranked, int k, const int* ids, const float* sims, int stride, int active, const int* asked,
    int first_hop, int second_hop, int slots, int times, float eps, const half_bits* table, int width, float* out)
{
    connected(
        ranked, k, ids, sims, stride, active, asked, first_hop, second_hop, slots, times, eps, table, width, out);
}

extern "C" __global__ void sum_similar_float32(
    const int* ranked, int k, const int* asked, int first_hop, int second_hop, int slots, float threshold,
    float eps, const float* directions, int across, const float* table, int width, float* out)
{
    similar(
        ranked, k, asked, first_hop, second_hop, slots, threshold, eps, directions, across, table, width, out);
}

extern "C" __global__ void sum_similar_float16(
    const int* ranked, int k, const int* asked, int first_hop, int second_hop, int slots, float threshold,
    float eps, const half_bits* directions, int across, const half_bits* table, int width, float* out)
{
    similar(
        ranked, k, asked, first_hop, second_hop, slots, threshold, eps, directions, across, table, width, out);
}
