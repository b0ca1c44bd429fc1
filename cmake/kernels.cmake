# The target switchyard::kernels: the library with the CPU backend's kernels compiled once, instead of in every unit that has
# a layer. Nothing is compiled where no program links it.
file(CONFIGURE OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/switchyard_kernels.cpp CONTENT "#include <switchyard/kernels.hpp>\n" @ONLY)
add_library(switchyard_kernels STATIC EXCLUDE_FROM_ALL ${CMAKE_CURRENT_BINARY_DIR}/switchyard_kernels.cpp)
add_library(switchyard::kernels ALIAS switchyard_kernels)
target_link_libraries(switchyard_kernels PUBLIC switchyard::switchyard)
target_compile_definitions(switchyard_kernels PUBLIC SWITCHYARD_EXTERN_KERNELS)
