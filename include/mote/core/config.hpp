// Version, instruction-set tag and the namespace every declaration of mote lives in.
//
// The inline namespace is keyed by version and by the instruction set the file was compiled for: mote's inline functions in
// files of different tags have different names and are never merged. The tag names what mote's kernels tell apart, less than
// -march does, and functions of the standard library have none; mote_add_variant keeps those apart, too.
#pragma once

#define MOTE_VERSION_MAJOR 0
#define MOTE_VERSION_MINOR 1
#define MOTE_VERSION_PATCH 0

#if defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__) && defined(__AVX512CD__)
#define MOTE_TAG_BASE avx512
#elif defined(__AVX512F__)
#define MOTE_TAG_BASE avx512f
#elif defined(__AVX2__)
#define MOTE_TAG_BASE avx2
#elif defined(__AVX__)
#define MOTE_TAG_BASE avx
#elif defined(__SSE4_2__)
#define MOTE_TAG_BASE sse42
#elif defined(__SSE4_1__)
#define MOTE_TAG_BASE sse41
#elif defined(__SSSE3__)
#define MOTE_TAG_BASE ssse3
#elif defined(__SSE3__)
#define MOTE_TAG_BASE sse3
#elif defined(__SSE2__)
#define MOTE_TAG_BASE sse2
#elif defined(__ARM_FEATURE_MATMUL_INT8)
#define MOTE_TAG_BASE neon_i8mm
#elif defined(__ARM_FEATURE_DOTPROD)
#define MOTE_TAG_BASE neon_dotprod
#elif defined(__ARM_NEON)
#define MOTE_TAG_BASE neon
#else
#define MOTE_TAG_BASE generic
#endif

#ifdef __FMA__
#define MOTE_TAG_FMA _fma
#else
#define MOTE_TAG_FMA
#endif
#ifdef __F16C__
#define MOTE_TAG_F16C _f16c
#else
#define MOTE_TAG_F16C
#endif
#ifdef __AVX512VNNI__
#define MOTE_TAG_VNNI _vnni
#else
#define MOTE_TAG_VNNI
#endif
#ifdef __AVXVNNI__
#define MOTE_TAG_AVXVNNI _avxvnni
#else
#define MOTE_TAG_AVXVNNI
#endif
#ifdef __AVX512BF16__
#define MOTE_TAG_BF16 _bf16
#else
#define MOTE_TAG_BF16
#endif
#if defined(__AMX_INT8__) || defined(__AMXINT8__)
#define MOTE_TAG_AMX _amx
#else
#define MOTE_TAG_AMX
#endif
#if defined(__cpp_exceptions) || defined(__CUDACC__)
#define MOTE_EXCEPTIONS 1
#define MOTE_TAG_EXCEPTIONS
#else
#define MOTE_EXCEPTIONS 0
#define MOTE_TAG_EXCEPTIONS _noexcept
#endif

#define MOTE_PASTE_(a, b, c, d, e, f, g, h) v0_1_0_##a##b##c##d##e##f##g##h
#define MOTE_PASTE(a, b, c, d, e, f, g, h) MOTE_PASTE_(a, b, c, d, e, f, g, h)
#define MOTE_ABI                                                                                                       \
  MOTE_PASTE(MOTE_TAG_BASE, MOTE_TAG_FMA, MOTE_TAG_F16C, MOTE_TAG_VNNI, MOTE_TAG_AVXVNNI, MOTE_TAG_BF16, MOTE_TAG_AMX, \
             MOTE_TAG_EXCEPTIONS)

#define MOTE_BEGIN_NAMESPACE \
  namespace mote {           \
  inline namespace MOTE_ABI {
#define MOTE_END_NAMESPACE \
  }                        \
  }

// Functions that CUDA kernels call as well.
#ifdef __CUDACC__
#define MOTE_HD __host__ __device__
#else
#define MOTE_HD
#endif

#define MOTE_STRINGIFY_(x) #x
#define MOTE_STRINGIFY(x) MOTE_STRINGIFY_(x)

MOTE_BEGIN_NAMESPACE

inline constexpr int version_major = MOTE_VERSION_MAJOR;
inline constexpr int version_minor = MOTE_VERSION_MINOR;
inline constexpr int version_patch = MOTE_VERSION_PATCH;

// Version and instruction set of this file's mote, e.g. "v0_1_0_avx2_fma_f16c".
inline constexpr const char* abi_name = MOTE_STRINGIFY(MOTE_ABI);

MOTE_END_NAMESPACE
