# CUDA for the GPU backends: the target switchyard::cuda, and nvcc for our own programs.
#
# AUTO uses an nvcc that is on the path or named by CUDACXX. Inside another project the target is all that is made: the project enables
# the language for its own .cu files, project(... LANGUAGES CXX CUDA).
set(SWITCHYARD_CUDA AUTO CACHE STRING "GPU backends: AUTO (where there is nvcc), ON or OFF")
set_property(CACHE SWITCHYARD_CUDA PROPERTY STRINGS AUTO ON OFF)
if(NOT SWITCHYARD_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "switchyard: SWITCHYARD_CUDA: expected AUTO, ON or OFF, got ${SWITCHYARD_CUDA}")
endif()
if(SWITCHYARD_CUDA STREQUAL "OFF")
  return()
endif()

if(NOT CMAKE_CUDA_COMPILER)
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    if(SWITCHYARD_CUDA STREQUAL "ON")
      message(FATAL_ERROR
        "switchyard: SWITCHYARD_CUDA=ON: expected the CUDA compiler, found none. Put nvcc on the PATH, set CUDACXX to "
        "it, or set SWITCHYARD_CUDA to OFF.")
    endif()
    message(STATUS "switchyard: no CUDA compiler, so no GPU backends")
    return()
  endif()
endif()

if(PROJECT_IS_TOP_LEVEL)
  # PTX for the oldest architecture: it compiles fast and runs on every GPU that the backends support.
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80-virtual)
  endif()
  # Looked up at run time, so that a tool can take its place.
  if(NOT DEFINED CMAKE_CUDA_RUNTIME_LIBRARY)
    set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
  endif()
endif()
if(PROJECT_IS_TOP_LEVEL OR SWITCHYARD_TESTS OR SWITCHYARD_BENCH OR SWITCHYARD_EXAMPLES)
  enable_language(CUDA)
endif()
if(CMAKE_CUDA_COMPILER_VERSION AND CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12)
  message(FATAL_ERROR
    "switchyard: expected CUDA 12 or newer (for C++20), got ${CMAKE_CUDA_COMPILER_VERSION}. Set SWITCHYARD_CUDA to OFF "
    "to build for the CPU.")
endif()

add_library(switchyard_cuda INTERFACE)
add_library(switchyard::cuda ALIAS switchyard_cuda)
target_link_libraries(switchyard_cuda INTERFACE switchyard)
# Not as a compile feature: CMake 3.25 does not know that nvcc has C++20.
target_compile_options(switchyard_cuda INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>)
# All units of a program have to see the CPU backend with the same threads.
if(OpenMP_CXX_FOUND)
  target_compile_options(switchyard_cuda INTERFACE "$<$<COMPILE_LANGUAGE:CUDA>:SHELL:-Xcompiler=${OpenMP_CXX_FLAGS}>")
endif()

# NCCL, for transport/nccl.hpp: the target switchyard::nccl, where the CUDA toolkit or the system has it. No nvcc is needed for that header.
find_package(CUDAToolkit QUIET)
find_path(NCCL_INCLUDE_DIR nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
find_library(NCCL_LIBRARY nccl HINTS ${CUDAToolkit_LIBRARY_DIR} ${CUDAToolkit_LIBRARY_ROOT}/lib)
mark_as_advanced(NCCL_INCLUDE_DIR NCCL_LIBRARY)
if(NCCL_INCLUDE_DIR AND NCCL_LIBRARY AND TARGET CUDA::cudart)
  add_library(switchyard_nccl INTERFACE)
  add_library(switchyard::nccl ALIAS switchyard_nccl)
  target_include_directories(switchyard_nccl SYSTEM INTERFACE ${NCCL_INCLUDE_DIR})
  target_link_libraries(switchyard_nccl INTERFACE switchyard ${NCCL_LIBRARY} CUDA::cudart)
else()
  message(STATUS "switchyard: no NCCL (nccl.h and libnccl), so transport/nccl.hpp is not tested")
endif()

# switchyard_cuda_program(<target>): a program of ours that has .cu files.
function(switchyard_cuda_program target)
  target_link_libraries(${target} PRIVATE switchyard::cuda)
  # Line numbers cost nothing at run time, and every tool that checks kernels shows them.
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-lineinfo>)
  switchyard_warnings(${target})
endfunction()

# switchyard_for_hopper(<target>): compiles it for Hopper, whatever the others are compiled for.
function(switchyard_for_hopper target)
  if(NOT CMAKE_CUDA_ARCHITECTURES MATCHES "^90a")
    set_target_properties(${target} PROPERTIES CUDA_ARCHITECTURES 90a-virtual)
  endif()
endfunction()

# switchyard_together(<name> <list>): makes the .cu files of the list one unit, which then is all that the list has: nvcc takes
# seconds to read the headers, and files share kernels.
function(switchyard_together name list)
  set(text "")
  foreach(file IN LISTS ${list})
    string(APPEND text "#include \"${file}\"\n")
  endforeach()
  set(unit ${CMAKE_CURRENT_BINARY_DIR}/together/${name}.cu)
  file(CONFIGURE OUTPUT ${unit} CONTENT "${text}" @ONLY)
  set(${list} ${unit} PARENT_SCOPE)
endfunction()
