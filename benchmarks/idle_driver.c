// A libcuda.so.1 that does nothing: what Triton's launcher calls, for a GPU of sm_90. A launch that a GPU would refuse
// is an error here too.
#include "cuda.h"

typedef CUresult R;

static long launches;
long launches_so_far(void) { return launches; }

R cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction kernel, void** arguments, void** extra) {
  ++launches;
  const int empty = config->gridDimX == 0 || config->gridDimY == 0 || config->gridDimZ == 0;
  const int large = config->gridDimX > 0x7fffffff || config->gridDimY > 65535 || config->gridDimZ > 65535;
  return empty || large || config->blockDimX > 1024 || config->sharedMemBytes > 232448 ? CUDA_ERROR_INVALID_VALUE
                                                                                       : CUDA_SUCCESS;
}

R cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  *value = attribute == CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN ? 232448 : 132;
  return CUDA_SUCCESS;
}
R cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction kernel) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}
R cuPointerGetAttribute(void* value, CUpointer_attribute attribute, CUdeviceptr pointer) {
  *(CUdeviceptr*)value = pointer;
  return CUDA_SUCCESS;
}
R cuGetErrorString(CUresult result, const char** text) {
  *text = "refused";
  return CUDA_SUCCESS;
}
R cuCtxGetCurrent(CUcontext* context) {
  *context = (CUcontext)1;
  return CUDA_SUCCESS;
}
R cuModuleLoadData(CUmodule* module, const void* image) {
  *module = (CUmodule)1;
  return CUDA_SUCCESS;
}
R cuModuleGetFunction(CUfunction* kernel, CUmodule module, const char* name) {
  *kernel = (CUfunction)1;
  return CUDA_SUCCESS;
}
R cuCtxSetCurrent(CUcontext context) { return CUDA_SUCCESS; }
R cuCtxGetLimit(size_t* value, CUlimit limit) { return CUDA_SUCCESS; }
R cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }
R cuDeviceGet(CUdevice* device, int ordinal) { return CUDA_SUCCESS; }
R cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) { return cuCtxGetCurrent(context); }
R cuFuncSetAttribute(CUfunction kernel, CUfunction_attribute attribute, int value) { return CUDA_SUCCESS; }
R cuFuncSetCacheConfig(CUfunction kernel, CUfunc_cache config) { return CUDA_SUCCESS; }
