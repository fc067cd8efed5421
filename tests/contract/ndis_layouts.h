/*
 * The structures of the contract, declared from the member lists of the fact sheet (sections 2 to 5) for one
 * purpose: that a compiler says where each member lies on x64. Types have the widths of their Windows namesakes.
 */
#ifndef NDIS_LAYOUTS_H
#define NDIS_LAYOUTS_H

#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef u8 boolean;         /* BOOLEAN */
typedef void *handle;       /* NDIS_HANDLE, HANDLE */
typedef u32 ipv4_address;   /* IPAddr */
typedef u32 spi;            /* SPI_TYPE */

struct object_header {
    u8 Type;
    u8 Revision;
    u16 Size;
};

/* ---- V2 security associations ---- */

enum v2_operation { v2_ah = 1, v2_esp = 2, v2_max = 3 };

struct v2_algorithm_info {
    u32 Identifier;
    u32 KeyLength;
    u32 KeyOffsetBytes;
    u32 AdditionalInfo;
};

struct v2_security_association {
    u32 Flags;
    enum v2_operation Operation;
    spi Spi;
    struct v2_algorithm_info AuthenticationAlgorithm;
    struct v2_algorithm_info EncryptionAlgorithm;
    u32 SequenceNumberHighOrder;
};

#define ENDPOINTS                                                                                            \
    union {                                                                                                  \
        struct {                                                                                             \
            ipv4_address SrcAddr;                                                                            \
            ipv4_address DestAddr;                                                                           \
        } IPv4Endpoints;                                                                                     \
        struct {                                                                                             \
            u8 SrcAddr[16];                                                                                  \
            u8 DestAddr[16];                                                                                 \
        } IPv6Endpoints;                                                                                     \
    }

struct v2_add_sa {
    struct object_header Header;
    struct v2_add_sa *Next;
    u32 NumExtHdrs;
    u32 Flags;
    ENDPOINTS;
    handle OffloadHandle;
    u32 UdpEspEncapsulation;
    struct v2_security_association SecAssoc[2];
    u32 KeyLength;
    u8 KeyData[1];
};

struct v2_add_sa_ex {
    struct object_header Header;
    u32 NumExtHdrs;
    u32 Flags;
    ENDPOINTS;
    handle OffloadHandle;
    u32 UdpEspEncapsulation;
    struct v2_security_association SecAssoc[2];
    u32 KeyLength;
    u32 KeyOffset;
    u32 SourceSwitchPortId;
    u16 VlanId;
};

struct v2_update_sa {
    struct object_header Header;
    handle OffloadHandle;
    enum v2_operation Operation;
    spi Spi;
    u32 SequenceNumberHighOrder;
};

struct v2_delete_sa {
    struct object_header Header;
    struct v2_delete_sa *Next;
    handle OffloadHandle;
};

/* ---- V1 security associations ---- */

enum v1_operation { v1_authenticate = 1, v1_encrypt = 2 };
enum v1_encapsulation { v1_ike = 0, v1_other = 1 };

struct v1_algo_info {
    u32 algoIdentifier;
    u32 algoKeylen;
    u32 algoRounds;
};

struct v1_security_association {
    enum v1_operation Operation;
    spi SPI;
    struct v1_algo_info IntegrityAlgo;
    struct v1_algo_info ConfAlgo;
    struct v1_algo_info Reserved;
};

struct v1_add_sa {
    ipv4_address SrcAddr;
    ipv4_address SrcMask;
    ipv4_address DestAddr;
    ipv4_address DestMask;
    u32 Protocol;
    u16 SrcPort;
    u16 DestPort;
    ipv4_address SrcTunnelAddr;
    ipv4_address DestTunnelAddr;
    u16 Flags;
    int16_t NumSAs;
    struct v1_security_association SecAssoc[3];
    handle OffloadHandle;
    u32 KeyLen;
    u8 KeyMat[1];
};

struct v1_add_udpesp_sa {
    ipv4_address SrcAddr;
    ipv4_address SrcMask;
    ipv4_address DstAddr;
    ipv4_address DstMask;
    u32 Protocol;
    u16 SrcPort;
    u16 DestPort;
    ipv4_address SrcTunnelAddr;
    ipv4_address DestTunnelAddr;
    u16 Flags;
    int16_t NumSAs;
    struct v1_security_association SecAssoc[3];
    handle OffloadHandle;
    struct {
        enum v1_encapsulation UdpEncapType;
        u16 DstEncapPort;
    } EncapTypeEntry;
    handle EncapTypeEntryOffldHandle;
    u32 KeyLen;
    u8 KeyMat[1];
};

struct v1_delete_sa {
    handle OffloadHandle;
};

struct v1_delete_udpesp_sa {
    handle OffloadHandle;
    handle EncapTypeEntryOffldHandle;
};

/* ---- capabilities ---- */

struct checksum_ipv4 {
    u32 Encapsulation;
    u32 IpOptionsSupported : 2;
    u32 TcpOptionsSupported : 2;
    u32 TcpChecksum : 2;
    u32 UdpChecksum : 2;
    u32 IpChecksum : 2;
};

struct checksum_ipv6 {
    u32 Encapsulation;
    u32 IpExtensionHeadersSupported : 2;
    u32 TcpOptionsSupported : 2;
    u32 TcpChecksum : 2;
    u32 UdpChecksum : 2;
};

struct checksum_offload {
    struct checksum_ipv4 IPv4Transmit;
    struct checksum_ipv4 IPv4Receive;
    struct checksum_ipv6 IPv6Transmit;
    struct checksum_ipv6 IPv6Receive;
};

struct lso_v1 {
    struct {
        u32 Encapsulation;
        u32 MaxOffLoadSize;
        u32 MinSegmentCount;
        u32 TcpOptions : 2;
        u32 IpOptions : 2;
    } IPv4;
};

struct lso_v2 {
    struct {
        u32 Encapsulation;
        u32 MaxOffLoadSize;
        u32 MinSegmentCount;
    } IPv4;
    struct {
        u32 Encapsulation;
        u32 MaxOffLoadSize;
        u32 MinSegmentCount;
        u32 IpExtensionHeadersSupported : 2;
        u32 TcpOptionsSupported : 2;
    } IPv6;
};

struct ipsec_v1 {
    struct {
        u32 Encapsulation;
        u32 AhEspCombined;
        u32 TransportTunnelCombined;
        u32 IPv4Options;
        u32 Flags;
    } Supported;
    struct {
        u32 Md5 : 2;
        u32 Sha_1 : 2;
        u32 Transport : 2;
        u32 Tunnel : 2;
        u32 Send : 2;
        u32 Receive : 2;
    } IPv4AH;
    struct {
        u32 Des : 2;
        u32 Reserved : 2;
        u32 TripleDes : 2;
        u32 NullEsp : 2;
        u32 Transport : 2;
        u32 Tunnel : 2;
        u32 Send : 2;
        u32 Receive : 2;
    } IPv4ESP;
};

struct ipsec_v2 {
    u32 Encapsulation;
    boolean IPv6Supported;
    boolean IPv4Options;
    boolean IPv6NonIPsecExtensionHeaders;
    boolean Ah;
    boolean Esp;
    boolean AhEspCombined;
    boolean Transport;
    boolean Tunnel;
    boolean TransportTunnelCombined;
    boolean LsoSupported;
    boolean ExtendedSequenceNumbers;
    u32 UdpEsp;
    u32 AuthenticationAlgorithms;
    u32 EncryptionAlgorithms;
    u32 SaOffloadCapacity;
};

struct offload {
    struct object_header Header;
    struct checksum_offload Checksum;
    struct lso_v1 LsoV1;
    struct ipsec_v1 IPsecV1;
    struct lso_v2 LsoV2;
    u32 Flags;
    struct ipsec_v2 IPsecV2;
    struct {
        struct {
            boolean Enabled;
        } IPv4;
        struct {
            boolean Enabled;
        } IPv6;
    } Rsc;
    struct {
        u32 TransmitChecksumOffloadSupported : 4;
        u32 ReceiveChecksumOffloadSupported : 4;
        u32 LsoV2Supported : 4;
        u32 RssSupported : 4;
        u32 VmqSupported : 4;
        u32 MaxHeaderSizeSupported;
    } EncapsulatedPacketTaskOffloadGre;
};

/* ---- configuration ---- */

struct offload_parameters {
    struct object_header Header;
    u8 IPv4Checksum;
    u8 TCPIPv4Checksum;
    u8 UDPIPv4Checksum;
    u8 TCPIPv6Checksum;
    u8 UDPIPv6Checksum;
    u8 LsoV1;
    u8 IPsecV1;
    u8 LsoV2IPv4;
    u8 LsoV2IPv6;
    u8 TcpConnectionIPv4;
    u8 TcpConnectionIPv6;
    u32 Flags;
    u8 IPsecV2;
    u8 IPsecV2IPv4;
    u8 RscIPv4;
    u8 RscIPv6;
    u8 EncapsulatedPacketTaskOffload;
    u8 EncapsulationTypes;
};

struct offload_encapsulation {
    struct object_header Header;
    struct {
        u32 Enabled;
        u32 EncapsulationType;
        u32 HeaderSize;
    } IPv4;
    struct {
        u32 Enabled;
        u32 EncapsulationType;
        u32 HeaderSize;
    } IPv6;
};

/* ---- NDIS 5 ---- */

struct task_offload_header {
    u32 Version;
    u32 Size;
    u32 Reserved;
    u32 OffsetFirstTask;
    struct {
        u32 Encapsulation;
        struct {
            u32 FixedHeaderSize : 1;
            u32 Reserved : 31;
        } Flags;
        u32 EncapsulationHeaderSize;
    } EncapsulationFormat;
};

struct task_offload {
    u32 Version;
    u32 Size;
    u32 Task;
    u32 OffsetNextTask;
    u32 TaskBufferLength;
    u8 TaskBuffer[1];
};

struct task_ipsec {
    struct {
        u32 AH_ESP_COMBINED;
        u32 TRANSPORT_TUNNEL_COMBINED;
        u32 V4_OPTIONS;
        u32 RESERVED;
    } Supported;
    struct {
        u32 MD5 : 1;
        u32 SHA_1 : 1;
        u32 Transport : 1;
        u32 Tunnel : 1;
        u32 Send : 1;
        u32 Receive : 1;
    } V4AH;
    struct {
        u32 DES : 1;
        u32 RESERVED : 1;
        u32 TRIPLE_DES : 1;
        u32 NULL_ESP : 1;
        u32 Transport : 1;
        u32 Tunnel : 1;
        u32 Send : 1;
        u32 Receive : 1;
    } V4ESP;
};

struct packet_info {
    union {
        struct {
            handle OffloadHandle;
            handle NextOffloadHandle;
        } Transmit;
        struct {
            u32 SA_DELETE_REQ : 1;
            u32 CRYPTO_DONE : 1;
            u32 NEXT_CRYPTO_DONE : 1;
            u32 CRYPTO_STATUS;
        } Receive;
    };
};

/* ---- slots of the net buffer list ---- */

union checksum_slot {
    struct {
        u32 IsIPv4 : 1;
        u32 IsIPv6 : 1;
        u32 TcpChecksum : 1;
        u32 UdpChecksum : 1;
        u32 IpHeaderChecksum : 1;
        u32 Reserved : 11;
        u32 TcpHeaderOffset : 10;
    } Transmit;
    u64 Value;
};

union ipsec_v1_slot {
    struct {
        handle OffloadHandle;
    } Transmit;
    struct {
        u16 SaDeleteReq : 1;
        u16 CryptoDone : 1;
        u16 NextCryptoDone : 1;
        u16 Pad : 13;
        u16 CryptoStatus;
    } Receive;
    u64 Value;
};

union ipsec_v2_slot {
    struct {
        handle OffloadHandle;
    } Transmit;
    struct {
        u32 SaDeleteReq : 1;
        u32 CryptoDone : 1;
        u32 NextCryptoDone : 1;
        u32 Reserved : 13;
        u32 CryptoStatus : 16;
    } Receive;
    u64 Value;
};

union header_slot {
    struct {
        u32 NextHeader : 8;
        u32 PadLength : 8;
        u32 AhHeaderOffset : 8;
        u32 EspHeaderOffset : 8;
    } Transmit;
    struct {
        u32 NextHeader : 8;
        u32 PadLength : 8;
        u32 HeaderInfoSet : 1;
    } Receive;
    u64 Value;
};

union large_send_slot {
    struct {
        u32 MSS : 20;
        u32 TcpHeaderOffset : 10;
        u32 Type : 1;
        u32 Reserved2 : 1;
    } LsoV1Transmit;
    struct {
        u32 TcpPayload : 30;
        u32 Type : 1;
        u32 Reserved2 : 1;
    } LsoV1TransmitComplete;
    struct {
        u32 MSS : 20;
        u32 TcpHeaderOffset : 10;
        u32 Type : 1;
        u32 IPVersion : 1;
    } LsoV2Transmit;
    struct {
        u32 Reserved : 30;
        u32 Type : 1;
        u32 Reserved2 : 1;
    } LsoV2TransmitComplete;
    u64 Value;
};

#endif
