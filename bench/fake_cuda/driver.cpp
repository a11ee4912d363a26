// The part of CUDA's driver that Triton and Inductor call: modules load, kernels do not run.
#include <cuda.h>

namespace {
char anything[64];
unsigned last_grid[3];
constexpr auto kDone = CUDA_SUCCESS;
}  // namespace

extern "C" {

int fake_cuda_stub() { return 0; }
// The grid of the last launch, for bench/sass.py.
unsigned fake_cuda_grid(int axis) { return last_grid[axis]; }
CUresult cuInit(unsigned) { return kDone; }
CUresult cuDriverGetVersion(int* version) { return *version = CUDA_VERSION, kDone; }
CUresult cuDeviceGet(CUdevice* device, int) { return *device = 0, kDone; }
CUresult cuDeviceGetCount(int* count) { return *count = 1, kDone; }
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice) {
    switch (which) {
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
            *value = 9;
            break;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
            *value = 0;
            break;
        case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
            *value = 132;
            break;
        case CU_DEVICE_ATTRIBUTE_WARP_SIZE:
            *value = 32;
            break;
        case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR:
            *value = 2048;
            break;
        case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
            *value = 65536;
            break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK:
            *value = 49152;
            break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
            *value = 232448;
            break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
            *value = 233472;
            break;
        case CU_DEVICE_ATTRIBUTE_CLOCK_RATE:
            *value = 1980000;
            break;
        case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE:
            *value = 3201000;
            break;
        case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH:
            *value = 6144;
            break;
        default:
            *value = 1;
    }
    return kDone;
}
CUresult cuCtxGetCurrent(CUcontext* context) {
    return *context = reinterpret_cast<CUcontext>(anything), kDone;
}
CUresult cuCtxSetCurrent(CUcontext) { return kDone; }
CUresult cuCtxGetDevice(CUdevice* device) { return *device = 0, kDone; }
CUresult cuCtxGetLimit(size_t* value, CUlimit) { return *value = 1 << 20, kDone; }
CUresult cuCtxSetLimit(CUlimit, size_t) { return kDone; }
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) {
    return *context = reinterpret_cast<CUcontext>(anything), kDone;
}
CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
    return *flags = 0, *active = 1, kDone;
}
CUresult cuModuleLoad(CUmodule* module, const char*) {
    return *module = reinterpret_cast<CUmodule>(anything), kDone;
}
CUresult cuModuleLoadData(CUmodule* module, const void*) {
    return *module = reinterpret_cast<CUmodule>(anything), kDone;
}
CUresult cuModuleLoadDataEx(CUmodule* module, const void*, unsigned, CUjit_option*, void**) {
    return *module = reinterpret_cast<CUmodule>(anything), kDone;
}
CUresult cuModuleUnload(CUmodule) { return kDone; }
CUresult cuModuleGetFunction(CUfunction* function, CUmodule, const char*) {
    return *function = reinterpret_cast<CUfunction>(anything), kDone;
}
CUresult cuFuncGetAttribute(int* value, CUfunction_attribute which, CUfunction) {
    *value = which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024
             : which == CU_FUNC_ATTRIBUTE_NUM_REGS            ? 32
                                                              : 0;
    return kDone;
}
CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return kDone; }
CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return kDone; }
CUresult cuOccupancyMaxActiveClusters(int* count, CUfunction, const CUlaunchConfig*) {
    return *count = 1, kDone;
}
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* count, CUfunction, int, size_t) {
    return *count = 2, kDone;
}
CUresult cuTensorMapEncodeTiled(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*,
                                const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                                const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
    return kDone;
}
CUresult cuPointerGetAttribute(void* value, CUpointer_attribute, CUdeviceptr place) {
    return *static_cast<CUdeviceptr*>(value) = place, kDone;
}
CUresult cuLaunchKernel(CUfunction, unsigned x, unsigned y, unsigned z, unsigned, unsigned,
                        unsigned, unsigned, CUstream, void**, void**) {
    last_grid[0] = x, last_grid[1] = y, last_grid[2] = z;
    return kDone;
}
CUresult cuLaunchCooperativeKernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned,
                                   unsigned, unsigned, CUstream, void**) {
    return kDone;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig* launch, CUfunction, void**, void**) {
    last_grid[0] = launch->gridDimX, last_grid[1] = launch->gridDimY;
    last_grid[2] = launch->gridDimZ;
    return kDone;
}
CUresult cuLinkCreate_v2(unsigned, CUjit_option*, void**, CUlinkState*) { return kDone; }
CUresult cuLinkAddData_v2(CUlinkState, CUjitInputType, void*, size_t, const char*, unsigned,
                          CUjit_option*, void**) {
    return kDone;
}
CUresult cuLinkComplete(CUlinkState, void**, size_t*) { return kDone; }
CUresult cuGetErrorString(CUresult, const char** text) {
    return *text = "error of the fake CUDA device", kDone;
}
CUresult cuGetErrorName(CUresult, const char** text) { return *text = "error", kDone; }

}  // extern "C"
