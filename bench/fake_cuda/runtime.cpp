// The part of the CUDA runtime that torch calls: memory is real, kernels do not run.
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <map>
#include <mutex>

namespace {

constexpr size_t kMemory = 150'000'000'000;
constexpr size_t kScalarBytes = 4096;  // a copy to the host up to this size is read as numbers
constexpr auto kDone = cudaSuccess;

enum class Kind { none, host, device };
struct Block {
    size_t bytes;
    Kind kind;
};
std::mutex lock;
std::map<char*, Block> blocks;
std::atomic<size_t> used{0};
std::atomic<long> launched{0};
std::atomic<size_t> streams{0x1000};
thread_local dim3 pushed_grid, pushed_block;
thread_local size_t pushed_shared;
thread_local cudaStream_t pushed_stream;

// Untouched pages take no memory: a step of 40 GB needs none.
void* take(size_t bytes, Kind kind) {
    if (bytes == 0) return nullptr;
    const size_t rounded = (bytes + 4095) & ~size_t(4095);
    void* start = mmap(nullptr, rounded, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) return nullptr;
    const std::lock_guard<std::mutex> guard(lock);
    blocks[static_cast<char*>(start)] = {rounded, kind};
    if (kind == Kind::device) used += rounded;
    return start;
}

void drop(void* start) {
    const std::lock_guard<std::mutex> guard(lock);
    const auto found = blocks.find(static_cast<char*>(start));
    if (found == blocks.end()) return;
    if (found->second.kind == Kind::device) used -= found->second.bytes;
    munmap(start, found->second.bytes);
    blocks.erase(found);
}

Kind kind_of(const void* place) {
    const std::lock_guard<std::mutex> guard(lock);
    auto after = blocks.upper_bound(static_cast<char*>(const_cast<void*>(place)));
    if (after == blocks.begin()) return Kind::none;
    --after;
    return static_cast<const char*>(place) < after->first + after->second.bytes ? after->second.kind
                                                                                : Kind::none;
}

cudaError_t copy(void* to, const void* from, size_t bytes) {
    const bool from_device = bytes && kind_of(from) == Kind::device,
               to_device = bytes && kind_of(to) == Kind::device;
    if (bytes == 0 || (from_device && to_device))
        return kDone;  // device to device: a kernel, so not run
    memmove(to, from, bytes);
    char* read = static_cast<char*>(to);
    if (from_device && bytes <= kScalarBytes &&
        std::all_of(read, read + bytes, [](char byte) { return byte == 0; }))
        memset(to, 1, bytes);
    return kDone;
}

double milliseconds() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e3 + now.tv_nsec / 1e6;
}

cudaError_t launch() {
    ++launched;
    return kDone;
}

}  // namespace

extern "C" {

long fake_cuda_launches() { return launched; }

// --- the device

cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, kDone; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, kDone; }
cudaError_t cudaSetDevice(int) { return kDone; }
cudaError_t cudaDeviceSynchronize() { return kDone; }
cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, kDone; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, kDone; }
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { return *can = 0, kDone; }
cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return kDone; }
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    return *least = 0, *greatest = -5, kDone;
}
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int) {
    return *pool = reinterpret_cast<cudaMemPool_t>(8), kDone;
}
cudaError_t cudaDeviceGetPCIBusId(char* id, int size, int) {
    return snprintf(id, size, "0000:00:00.0"), kDone;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
    return *total = kMemory, *free = kMemory - used, kDone;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* device, int) {
    *device = {};
    strcpy(device->name, "NVIDIA H200");
    device->major = 9;
    device->totalGlobalMem = kMemory;
    device->multiProcessorCount = 132;
    device->warpSize = 32;
    device->maxThreadsPerBlock = device->maxThreadsDim[0] = device->maxThreadsDim[1] = 1024;
    device->maxThreadsDim[2] = 64;
    device->maxThreadsPerMultiProcessor = 2048;
    device->maxBlocksPerMultiProcessor = 32;
    device->maxGridSize[0] = 2147483647;
    device->maxGridSize[1] = device->maxGridSize[2] = 65535;
    device->regsPerBlock = device->regsPerMultiprocessor = 65536;
    device->sharedMemPerBlock = 49152;
    device->sharedMemPerBlockOptin = 232448;
    device->sharedMemPerMultiprocessor = 233472;
    device->l2CacheSize = 60 << 20;
    device->concurrentKernels = 1;
    return kDone;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
    cudaDeviceProp device;
    cudaGetDeviceProperties(&device, 0);
    switch (which) {
        case cudaDevAttrComputeCapabilityMajor:
            *value = device.major;
            break;
        case cudaDevAttrMultiProcessorCount:
            *value = device.multiProcessorCount;
            break;
        case cudaDevAttrWarpSize:
            *value = device.warpSize;
            break;
        case cudaDevAttrMaxThreadsPerBlock:
            *value = device.maxThreadsPerBlock;
            break;
        case cudaDevAttrMaxThreadsPerMultiProcessor:
            *value = device.maxThreadsPerMultiProcessor;
            break;
        case cudaDevAttrMaxSharedMemoryPerBlock:
            *value = device.sharedMemPerBlock;
            break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
            *value = device.sharedMemPerBlockOptin;
            break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
            *value = device.sharedMemPerMultiprocessor;
            break;
        case cudaDevAttrMaxRegistersPerBlock:
            *value = device.regsPerBlock;
            break;
        case cudaDevAttrMaxGridDimX:
            *value = device.maxGridSize[0];
            break;
        case cudaDevAttrMaxBlockDimX:
            *value = device.maxThreadsPerBlock;
            break;
        default:
            *value = 0;
    }
    return kDone;
}

// --- memory

cudaError_t cudaMalloc(void** start, size_t bytes) {
    *start = used + bytes > kMemory ? nullptr : take(bytes, Kind::device);
    return *start || bytes == 0 ? kDone : cudaErrorMemoryAllocation;
}
cudaError_t cudaMallocAsync(void** start, size_t bytes, cudaStream_t) {
    return cudaMalloc(start, bytes);
}
cudaError_t cudaFree(void* start) { return drop(start), kDone; }
cudaError_t cudaFreeAsync(void* start, cudaStream_t) { return drop(start), kDone; }
cudaError_t cudaHostAlloc(void** start, size_t bytes, unsigned) {
    return *start = take(bytes, Kind::host), kDone;
}
cudaError_t cudaFreeHost(void* start) { return drop(start), kDone; }
cudaError_t cudaHostRegister(void*, size_t, unsigned) { return kDone; }
cudaError_t cudaHostUnregister(void*) { return kDone; }
cudaError_t cudaGetSymbolAddress(void** place, const void*) {
    return *place = take(1 << 20, Kind::device), kDone;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
    return copy(to, from, bytes);
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
    return copy(to, from, bytes);
}
cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, cudaStream_t) {
    return copy(to, from, bytes);
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind, cudaStream_t) {
    for (size_t row = 0; row < height; ++row)
        copy(static_cast<char*>(to) + row * to_pitch,
             static_cast<const char*>(from) + row * from_pitch, width);
    return kDone;
}
cudaError_t cudaMemcpyToSymbol(const void*, const void*, size_t, size_t, cudaMemcpyKind) {
    return kDone;
}
cudaError_t cudaMemset(void*, int, size_t) { return kDone; }
cudaError_t cudaMemsetAsync(void*, int, size_t, cudaStream_t) { return kDone; }
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* found, const void* place) {
    *found = {};
    const Kind kind = kind_of(place);
    found->type = kind == Kind::host     ? cudaMemoryTypeHost
                  : kind == Kind::device ? cudaMemoryTypeDevice
                                         : cudaMemoryTypeUnregistered;
    (kind == Kind::host ? found->hostPointer : found->devicePointer) =
        kind == Kind::none ? nullptr : const_cast<void*>(place);
    return kDone;
}

// --- streams and events: everything completes at once

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    return *stream = reinterpret_cast<cudaStream_t>(streams += 16), kDone;
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
    return cudaStreamCreate(stream);
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return kDone; }
cudaError_t cudaStreamQuery(cudaStream_t) { return kDone; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return kDone; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return kDone; }
cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) { return *priority = 0, kDone; }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
    return *status = cudaStreamCaptureStatusNone, kDone;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status,
                                     unsigned long long* id, cudaGraph_t*, const cudaGraphNode_t**,
                                     const cudaGraphEdgeData**, size_t*) {
    if (id) *id = 0;
    return *status = cudaStreamCaptureStatusNone, kDone;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return kDone; }
cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t function, void* data) {
    return function(data), kDone;
}
cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t function, void* data,
                                  unsigned) {
    return function(stream, kDone, data), kDone;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) {
    return *event = reinterpret_cast<cudaEvent_t>(new double(0)), kDone;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    return cudaEventCreate(event);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    return delete reinterpret_cast<double*>(event), kDone;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
    return *reinterpret_cast<double*>(event) = milliseconds(), kDone;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
    return cudaEventRecord(event, stream);
}
cudaError_t cudaEventQuery(cudaEvent_t) { return kDone; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return kDone; }
cudaError_t cudaEventElapsedTime(float* between, cudaEvent_t first, cudaEvent_t second) {
    *between =
        std::max(1e-3, *reinterpret_cast<double*>(second) - *reinterpret_cast<double*>(first));
    return kDone;
}

// --- kernels

cudaError_t cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t) {
    return launch();
}
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) {
    return launch();
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void*, void**) { return launch(); }
cudaError_t cudaLaunchCooperativeKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t) {
    return launch();
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return kDone; }
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, const void*) {
    *found = {};
    found->maxThreadsPerBlock = 1024;
    found->numRegs = 32;
    found->binaryVersion = found->ptxVersion = 90;
    return kDone;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
    return *blocks = 2, kDone;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int,
                                                                   size_t, unsigned) {
    return *blocks = 2, kDone;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
    return *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(function)), kDone;
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
    pushed_grid = grid, pushed_block = block, pushed_shared = shared, pushed_stream = stream;
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
    *grid = pushed_grid, *block = pushed_block, *shared = pushed_shared;
    return *static_cast<cudaStream_t*>(stream) = pushed_stream, kDone;
}
char __cudaInitModule(void**) { return 1; }
void** __cudaRegisterFatBinary(void*) {
    static void* handle;
    return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaRegisterFunction(void**, const char*, char*, const char*, int, void*, void*, void*,
                            void*, int*) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaUnregisterFatBinary(void**) {}

// --- the rest

cudaError_t cudaGetLastError() { return kDone; }
cudaError_t cudaPeekAtLastError() { return kDone; }
const char* cudaGetErrorName(cudaError_t) { return "error"; }
const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorMemoryAllocation ? "out of memory" : "error of the fake CUDA device";
}
cudaError_t cudaProfilerStart() { return kDone; }
cudaError_t cudaProfilerStop() { return kDone; }
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
    void* driver = dlopen("libcuda.so.1", RTLD_LAZY);
    *function = dlsym(driver, name);
    if (*function == nullptr) *function = dlsym(driver, "fake_cuda_stub");
    if (result) *result = cudaDriverEntryPointSuccess;
    return kDone;
}

}  // extern "C"
