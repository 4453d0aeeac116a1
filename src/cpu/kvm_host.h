/*
 * What the KVM of this host says of its processor beside CPUID.
 */
#ifndef FERRY_CPU_KVM_HOST_H
#define FERRY_CPU_KVM_HOST_H

#include <stdint.h>

/* An MSR that tells features, as KVM says that it can give it to guests (Linux,
 * Documentation/virt/kvm/api.rst, 4.68 KVM_GET_MSRS). KVM_FD is that of /dev/kvm. 0 where KVM does not have
 * it: no features. */
uint64_t kvm_host_feature_msr(int kvm_fd, uint32_t msr);

#endif
