# What mote's targets link to. Used by mote's own build and, installed beside the package, by find_package(mote).
#
#   mote::xsimd   the xsimd headers, 8.1 or later (set MOTE_XSIMD_INCLUDE_DIR to choose a copy)
#   mote::json    nlohmann-json's headers              } only where found; mote::io needs both
#   mote::pcre2   PCRE2, 8-bit library                 }
#   mote::eigen   Eigen's headers, only where found; mote::compress needs them

find_package(Threads REQUIRED)

if(NOT TARGET mote::xsimd)
  find_path(MOTE_XSIMD_INCLUDE_DIR xsimd/xsimd.hpp DOC "Directory that holds xsimd/xsimd.hpp")
  if(NOT MOTE_XSIMD_INCLUDE_DIR)
    if(TARGET xsimd)  # a parent project brought it, e.g. by FetchContent
      get_target_property(MOTE_XSIMD_INCLUDE_DIR xsimd INTERFACE_INCLUDE_DIRECTORIES)
    else()
      message(FATAL_ERROR "mote needs the xsimd headers, 8.1 or later: install libxsimd-dev (Debian), xsimd-devel "
                          "(Fedora) or xsimd (Homebrew), or set MOTE_XSIMD_INCLUDE_DIR to the directory that holds xsimd/")
    endif()
  endif()
  add_library(mote::xsimd INTERFACE IMPORTED GLOBAL)
  target_include_directories(mote::xsimd INTERFACE "${MOTE_XSIMD_INCLUDE_DIR}")
endif()

if(NOT TARGET mote::json)
  find_path(MOTE_JSON_INCLUDE_DIR nlohmann/json.hpp DOC "Directory that holds nlohmann/json.hpp")
  if(MOTE_JSON_INCLUDE_DIR)
    add_library(mote::json INTERFACE IMPORTED GLOBAL)
    target_include_directories(mote::json INTERFACE "${MOTE_JSON_INCLUDE_DIR}")
  elseif(TARGET nlohmann_json::nlohmann_json)
    add_library(mote::json INTERFACE IMPORTED GLOBAL)
    target_link_libraries(mote::json INTERFACE nlohmann_json::nlohmann_json)
  endif()
endif()

if(NOT TARGET mote::pcre2)
  find_path(MOTE_PCRE2_INCLUDE_DIR pcre2.h DOC "Directory that holds pcre2.h")
  find_library(MOTE_PCRE2_LIBRARY NAMES pcre2-8 pcre2-8-static DOC "The 8-bit PCRE2 library")
  if(MOTE_PCRE2_INCLUDE_DIR AND MOTE_PCRE2_LIBRARY)
    add_library(mote::pcre2 INTERFACE IMPORTED GLOBAL)
    target_include_directories(mote::pcre2 INTERFACE "${MOTE_PCRE2_INCLUDE_DIR}")
    target_link_libraries(mote::pcre2 INTERFACE "${MOTE_PCRE2_LIBRARY}")
    target_compile_definitions(mote::pcre2 INTERFACE PCRE2_CODE_UNIT_WIDTH=8)
  endif()
endif()

if(NOT TARGET mote::eigen)
  find_path(MOTE_EIGEN_INCLUDE_DIR Eigen/Core PATH_SUFFIXES eigen3 DOC "Directory that holds Eigen/")
  if(MOTE_EIGEN_INCLUDE_DIR)
    add_library(mote::eigen INTERFACE IMPORTED GLOBAL)
    target_include_directories(mote::eigen INTERFACE "${MOTE_EIGEN_INCLUDE_DIR}")
  endif()
endif()
mark_as_advanced(MOTE_XSIMD_INCLUDE_DIR MOTE_JSON_INCLUDE_DIR MOTE_PCRE2_INCLUDE_DIR MOTE_PCRE2_LIBRARY
                 MOTE_EIGEN_INCLUDE_DIR)
