// What the kernels of neighbor lists and of re-ranking share. Blocks have whole warps.

typedef long long key;

#define NO_KEY (-(1LL << 62))  // below every key
#define LAST_ID 0x7fffffff

extern __shared__ __align__(16) int shared[];

// Sort keys downwards; there is room for the next power of two.
__device__ void sort_down(key* keys, int count)
{
    int size = 1;
    while (size < count)
        size *= 2;
    for (int i = count + threadIdx.x; i < size; i += blockDim.x)
        keys[i] = NO_KEY;
    __syncthreads();
    for (int run = 2; run <= size; run *= 2)
        for (int apart = run / 2; apart; apart /= 2) {
            for (int i = threadIdx.x; i < size / 2; i += blockDim.x) {
                const int low = 2 * i - (i & apart - 1), high = low + apart;
                const key one = keys[low], other = keys[high];
                if ((one < other) == ((low & run) == 0)) {
                    keys[low] = other;
                    keys[high] = one;
                }
            }
            __syncthreads();
        }
}

// Numbers in the order of floats, and back.
__device__ int place_of_float(float number)
{
    const int bits = __float_as_int(number + 0.0f);  // there is one zero only
    return bits >= 0 ? bits : bits ^ LAST_ID;
}

__device__ float float_of_place(int place) { return __int_as_float(place >= 0 ? place : place ^ LAST_ID); }

__device__ int id_of(key one) { return LAST_ID - (int)(one & LAST_ID); }

// The inner product of two rows, to all lanes of a warp; see inner_products.py for the order of additions.
__device__ float inner_product(const float* one, const float* other, int d)
{
    float sum = 0;
    for (int c = threadIdx.x % 32; c < d; c += 32)
        sum = __fadd_rn(sum, __fmul_rn(one[c], other[c]));
    for (int apart = 16; apart; apart /= 2)
        sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, apart));
    return sum;
}
