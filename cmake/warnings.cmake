# Warnings for our own tests, benches and examples; a consumer of the library gets none of this.
option(SWITCHYARD_WARNINGS_AS_ERRORS "Stop at a warning in our own programs (our presets do)" OFF)

if(MSVC)
  set(switchyard_warning_options /W4)
else()
  # Signed extents meet the unsigned sizes of the standard library everywhere: clang, too, leaves that out.
  set(switchyard_warning_options
    -Wall -Wextra -Wpedantic -Wconversion -Wno-sign-conversion -Wshadow -Wnon-virtual-dtor)
  # What nvcc writes for the host compiler is not pedantic. Where machine code is made, no kernel may spill registers.
  set(switchyard_cuda_warning_options -Xcompiler=-Wall,-Wextra,-Wshadow -Xptxas=-warn-spills,-warn-lmem-usage)
endif()

function(switchyard_warnings target)
  target_compile_options(${target} PRIVATE
    "$<$<COMPILE_LANGUAGE:CXX>:${switchyard_warning_options}>"
    "$<$<COMPILE_LANGUAGE:CUDA>:${switchyard_cuda_warning_options}>")
  set_target_properties(${target} PROPERTIES COMPILE_WARNING_AS_ERROR ${SWITCHYARD_WARNINGS_AS_ERRORS})
endfunction()
