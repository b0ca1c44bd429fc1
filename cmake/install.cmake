# Installs the headers and a package that find_package(switchyard) finds. All of it is one component, so that
# `cmake --install <build> --component switchyard` leaves out what a fetched test library would install.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/switchyard)

install(DIRECTORY include/switchyard DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT switchyard PATTERN "*.md" EXCLUDE)
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/licenses/switchyard COMPONENT switchyard)
install(TARGETS switchyard EXPORT switchyardTargets)
install(EXPORT switchyardTargets NAMESPACE switchyard:: DESTINATION ${package_dir} COMPONENT switchyard)

configure_package_config_file(cmake/switchyardConfig.cmake.in ${PROJECT_BINARY_DIR}/switchyardConfig.cmake
  INSTALL_DESTINATION ${package_dir})
# Before 1.0 a minor version may change the interface. Headers only: the same files serve every architecture.
write_basic_package_version_file(${PROJECT_BINARY_DIR}/switchyardConfigVersion.cmake
  COMPATIBILITY SameMinorVersion
  ARCH_INDEPENDENT)
install(FILES
    ${PROJECT_BINARY_DIR}/switchyardConfig.cmake
    ${PROJECT_BINARY_DIR}/switchyardConfigVersion.cmake
    ${PROJECT_SOURCE_DIR}/cmake/kernels.cmake
  DESTINATION ${package_dir}
  COMPONENT switchyard)
