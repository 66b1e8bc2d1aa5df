// Included first where the CUDA sources are compiled against a torch without CUDA: what only a torch with CUDA defines
// may stay open. The module then loads beside either; its CUDA kernels run beside the latter.
#pragma once

#pragma weak aoti_torch_get_current_cuda_stream
#pragma weak torch_c10_cuda_check_msg
#pragma weak torch_c10_cuda_free_error_msg
